"""Which weights stay float32 in engines, in every number format?

The learner and the publisher both use this module, so they cannot differ. vLLM holds the routers of mixtures of experts
and Mamba's A in float32, because a rounded router sends tokens to other experts.
"""

from torch import nn

ROUTER_BIAS = "e_score_correction_bias"
"""The buffer that makes a module a router with an expert bias."""


def float32_weights(model: nn.Module) -> set[str]:
    """Names of the parameters of `model` that stay float32."""
    routers = {f"{name}.weight" for name, module in model.named_modules() if hasattr(module, ROUTER_BIAS)}
    return routers | {name for name, _ in model.named_parameters() if name.endswith(".A_log")}
