"""Linear layers of 4-bit integers on CPUs for which vLLM has no kernel, as on those without AVX-512.

The weights become numbers of the forward pass when they are loaded: the same values, in four times the memory.
"""

import torch
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from torch import Tensor, nn
from vllm.model_executor.kernels.linear.mixed_precision.MPLinearKernel import MPLinearKernel, MPLinearLayerConfig
from vllm.model_executor.layers.quantization.utils import replace_parameter
from vllm.scalar_type import scalar_types

BITS = 4
PER_INT32 = 32 // BITS


class UnpackedInt4(MPLinearKernel):
    """vLLM's interface of such a kernel."""

    @classmethod
    def get_min_capability(cls) -> int:
        return -1  # not of a GPU

    @classmethod
    def can_implement(cls, c: MPLinearLayerConfig) -> tuple[bool, str | None]:
        if c.weight_type != scalar_types.uint4b8 or c.zero_points:
            return False, "only 4-bit integers that are symmetric around 0"
        return True, None

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        packed, scale, _ = self._get_weight_params(layer)  # [rows, columns / 8], [rows, groups]
        rows, columns = packed.shape[0], packed.shape[1] * PER_INT32
        codes = unpack_from_int32(packed, BITS, torch.Size((rows, columns))).to(scale.dtype)
        weight = (codes.unflatten(1, (scale.shape[1], -1)) * scale.unsqueeze(-1)).flatten(1)
        replace_parameter(layer, self.w_q_name, nn.Parameter(weight, requires_grad=False))

    def apply_weights(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return nn.functional.linear(x, self._get_weight_params(layer)[0], bias)
