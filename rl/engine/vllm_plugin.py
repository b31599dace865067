"""What does polygym's vLLM plugin add, so that vLLM can serve our policies?

`register` is the entry point of `vllm.general_plugins`, so vLLM calls it in every process of its own, whatever model
is served there. On any platform it adds the weight transfers of `rl.weights.transports`, the engine of an endpoint
ends with it, and model runners record which experts they choose, if asked (`rl.engine.routes`). On CPUs it also
initialises AMX, without which BF16 attention can crash with SIGILL, and adds experts without a gate (relu2, as in
NemotronH), which vLLM's CPU kernels refuse. Models with gated experts keep vLLM's own kernels, which are adapted to
weight updates. Weights of 4-bit integers are served where its kernel is not compiled (without AVX-512).
"""

import logging
import os
from typing import Any

import torch

from rl.stop import end_with_parent
from rl.weights.transports import TRANSPORTS

ENDPOINT = "POLYGYM_ENDPOINT"
"""Environment variable with the process id of an endpoint."""
_log = logging.getLogger(__name__)
_done: set[str] = set()


def register() -> None:
    """Add what this module's docstring lists. Idempotent. A vLLM that does not fit stays unchanged; this warns."""
    from vllm.platforms import current_platform

    steps = [_end_with_endpoint, _add_weight_transfers, _record_routes]
    if current_platform.is_cpu():
        steps += [_initialise_amx, _add_experts_without_gate, _pack_updated_experts, _unpack_int4]
    for step in steps:
        if step.__name__ in _done:
            continue
        try:
            step()
        except (ImportError, AttributeError) as error:
            _log.warning("polygym's vLLM plugin does not fit this vLLM; %s is skipped: %s", step.__name__, error)
        _done.add(step.__name__)


def _end_with_endpoint() -> None:
    """The engine of an endpoint (`rl.engine.endpoint`) ends with it, also if it is killed; vLLM alone leaves it."""
    if os.environ.get(ENDPOINT) == str(os.getppid()):
        end_with_parent()


def _add_weight_transfers() -> None:
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory

    transfers = {transport.backend: transport.transfer for transport in TRANSPORTS.values()}
    for backend, transfer in transfers.items():
        if transfer is not None:
            WeightTransferEngineFactory.register_engine(backend, *transfer)


def _record_routes() -> None:
    from vllm.platforms import current_platform
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    from rl.engine.routes import recording

    if current_platform.is_cpu():  # its runner has a `load_model` of its own
        from vllm.v1.worker.cpu_model_runner import CPUModelRunner

        recording(CPUModelRunner)
    else:
        recording(GPUModelRunner)


def _initialise_amx() -> None:
    initialise = getattr(torch.cpu, "_init_amx", None)
    if initialise is not None:
        initialise()


def _add_experts_without_gate() -> None:
    """Append `rl.engine.experts` to vLLM's list of expert kernels on CPUs, after its own kernels."""
    from vllm.model_executor.layers.fused_moe.config import FusedMoEConfig
    from vllm.model_executor.layers.fused_moe.oracle import unquantized

    check_config = FusedMoEConfig.__post_init__
    list_kernels = unquantized.backend_to_kernel_cls

    def check_config_with_ours(self: FusedMoEConfig) -> None:
        try:
            check_config(self)
        except NotImplementedError:
            # The last statement raises this for experts without a gate, so all fields are set by then.
            if self.is_act_and_mul:
                raise

    def list_kernels_with_ours(backend: unquantized.UnquantizedMoeBackend) -> list[type[Any]]:
        kernels = list(list_kernels(backend))
        if backend is unquantized.UnquantizedMoeBackend.CPU:
            from rl.engine.experts import CpuExpertsWithoutGate

            kernels.append(CpuExpertsWithoutGate)
        return kernels

    FusedMoEConfig.__post_init__ = check_config_with_ours
    unquantized.backend_to_kernel_cls = list_kernels_with_ours


def _pack_updated_experts() -> None:
    """Make CPU kernels pack updated expert weights as they packed the first ones; vLLM 0.32 does not."""
    from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod

    set_up = UnquantizedFusedMoEMethod._setup_kernel

    def set_up_and_pack(self: UnquantizedFusedMoEMethod, layer: Any, w13: torch.Tensor, w2: torch.Tensor) -> None:
        is_update = self.moe_kernel is not None
        set_up(self, layer, w13, w2)
        if is_update:
            assert self.moe_kernel is not None
            self.moe_kernel.fused_experts.process_weights_after_loading(layer)

    UnquantizedFusedMoEMethod._setup_kernel = set_up_and_pack


def _unpack_int4() -> None:
    from vllm import _custom_ops  # noqa: F401, its import loads the kernels
    from vllm.model_executor.kernels.linear import register_linear_kernel
    from vllm.model_executor.kernels.linear.mixed_precision.cpu import CPUWNA16LinearKernel
    from vllm.platforms import PlatformEnum

    if hasattr(torch.ops._C, "cpu_gemm_wna16"):
        return
    from rl.engine.int4 import UnpackedInt4

    disabled = os.environ.get("VLLM_DISABLED_KERNELS", "")
    os.environ["VLLM_DISABLED_KERNELS"] = ",".join(filter(None, [disabled, CPUWNA16LinearKernel.__name__]))
    register_linear_kernel(UnpackedInt4, PlatformEnum.CPU, "mp")
