"""How do mixture-of-experts layers without a gate run on CPUs in vLLM?

vLLM 0.32 has CPU kernels for gated experts only. NemotronH's experts are down(relu(up x)^2); the class below computes
them with one matrix product per expert. `rl.engine.vllm_plugin` adds it to vLLM.
"""

import torch
import torch.nn.functional as F
from vllm.model_executor.layers.fused_moe import modular_kernel
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.fused_moe.config import FusedMoEParallelConfig
from vllm.model_executor.layers.fused_moe.topk_weight_and_reduce import TopKWeightAndReduceNoOP
from vllm.model_executor.layers.quantization.utils.quant_utils import QuantKey
from vllm.platforms import current_platform


class CpuExpertsWithoutGate(modular_kernel.FusedMoEExpertsModular):
    """Unquantised relu2 experts. Weights stay as loaded, so a hot reload need not pack them again."""

    @staticmethod
    def activation_format() -> modular_kernel.FusedMoEActivationFormat:
        return modular_kernel.FusedMoEActivationFormat.Standard

    @staticmethod
    def _supports_current_device() -> bool:
        return current_platform.is_cpu()

    @staticmethod
    def _supports_no_act_and_mul() -> bool:
        return True

    @staticmethod
    def _supports_activation(activation: MoEActivation) -> bool:
        return activation is MoEActivation.RELU2_NO_MUL

    @staticmethod
    def _supports_quant_scheme(weight_key: QuantKey | None, activation_key: QuantKey | None) -> bool:
        return weight_key is None and activation_key is None

    @staticmethod
    def _supports_parallel_config(moe_parallel_config: FusedMoEParallelConfig) -> bool:
        return not moe_parallel_config.use_ep

    @property
    def expects_unquantized_inputs(self) -> bool:
        return True

    def workspace_shapes(
        self, M: int, N: int, K: int, *_: object, **__: object
    ) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """No scratch; the output is [M tokens, K hidden]."""
        return (0,), (0,), (M, K)

    def finalize_weight_and_reduce_impl(self) -> modular_kernel.TopKWeightAndReduce:
        return TopKWeightAndReduceNoOP()  # `apply` has weighted and summed already

    def apply(
        self,
        output: torch.Tensor,
        hidden_states: torch.Tensor,
        w1: torch.Tensor,
        w2: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        *_: object,
        apply_router_weight_on_input: bool = False,
        **__: object,
    ) -> None:
        """Write sum_k weight_k * down_k(relu(up_k x)^2) to `output` [tokens, hidden].

        `w1` is [experts, intermediate, hidden], `w2` [experts, hidden, intermediate]; `topk_*` are [tokens, k].
        """
        num_tokens, top_k = topk_ids.shape
        flat_ids = topk_ids.flatten()
        order = flat_ids.argsort(stable=True)
        rows = hidden_states[order // top_k]
        products = torch.empty_like(rows)
        start = 0
        for expert, size in enumerate(torch.bincount(flat_ids, minlength=w1.shape[0]).tolist()):
            if size:
                up = F.relu(F.linear(rows[start : start + size], w1[expert])).square_()
                torch.mm(up, w2[expert].T, out=products[start : start + size])
                start += size
        unsorted = torch.empty_like(products)
        unsorted[order] = products
        per_choice = unsorted.view(num_tokens, top_k, -1)
        if apply_router_weight_on_input:  # the caller has weighted the input
            output.copy_(per_choice.sum(dim=1))
        else:
            output.copy_((per_choice * topk_weights.unsqueeze(-1)).sum(dim=1))
