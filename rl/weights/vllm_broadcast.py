"""How does a vLLM worker load weights while they arrive from the learner, over NCCL or through CUDA IPC?

vLLM's own transfer receives them. It hands them on in pieces, which are hashed, restored and loaded at once: a GPU has
no room for a second copy of the policy. A version is therefore verified after it is loaded, by the driver, which ends
the run if the hash is not the learner's.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

from torch import Tensor
from vllm.distributed.weight_transfer.base import WeightTransferEngine
from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine, IPCWeightTransferInitInfo
from vllm.distributed.weight_transfer.nccl_common import NCCLWeightTransferInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine
from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

from rl.weights.broadcast import Broadcast, Incoming
from rl.weights.names import Restoring
from rl.weights.source import WeightSource
from rl.weights.transport import Received, Transport
from rl.weights.vllm_transfer import ReceivedWeights, SupportsLoading, Update


class BroadcastWeights(ReceivedWeights):
    """Registered with vLLM's factory by `rl.engine.vllm_plugin`. An adapter's base is held in the CPU's memory."""

    init_info_cls: Any = NCCLWeightTransferInitInfo
    transfer_class: type[WeightTransferEngine[Any, Any]] = NCCLWeightTransferEngine
    _transfer: WeightTransferEngine[Any, Any] | None = None
    _digests: Sequence[str] = ()

    def init_transfer_engine(self, init_info: Any) -> None:
        """Join a group, and leave the one before it."""
        self.shutdown()
        self._transfer = self.transfer_class(self.config, self.vllm_config, self.device, self.model)
        self._transfer.init_transfer_engine(init_info)

    def receive_weights(self, update_info: Update) -> None:
        """Raises `IncompleteWeightsError` with a mixture of both versions."""
        source, self._digests = update_info.source, ()
        if source.base is not None:
            super().receive_weights(update_info)
        else:
            names = [meta.name for meta in _place(source).metas]
            restoring = Restoring(names, update_info.precision, self.model_config.dtype)
            initialize_layerwise_reload(self.model)
            model = cast(SupportsLoading, self.model)
            self._receive_into(source, lambda piece: model.load_weights(restoring.take(piece)))
            self._check_complete(source.version)
        self.loaded_hash = "+".join(self._digests)

    def _receive(self, transport: Transport, source: WeightSource) -> Received:
        """An adapter, or its base."""
        tensors: list[tuple[str, Tensor]] = []
        self._receive_into(source, lambda piece: tensors.extend((name, tensor.cpu()) for name, tensor in piece))
        return Received(tensors, source.hash)

    def _receive_into(self, source: WeightSource, take: Callable[[Sequence[tuple[str, Tensor]]], object]) -> None:
        assert self._transfer is not None, "the engine has joined no group"
        place = _place(source)
        incoming = Incoming(place.metas, take)
        self._transfer.model = cast(Any, incoming)
        for update in place.updates:
            self._transfer.receive_weights(self._transfer.parse_update_info(dict(update)))
        self._digests = (*self._digests, incoming.checksum.hexdigest())

    def shutdown(self) -> None:
        """Leave the group. The next one brings an adapter's base again."""
        if self._transfer is not None:
            self._transfer.shutdown()
        self._transfer = self._base = None


class SharedCardWeights(BroadcastWeights):
    """The same for an engine on the learner's card."""

    init_info_cls: Any = IPCWeightTransferInitInfo
    transfer_class = IPCWeightTransferEngine

    def finish_weight_update(self) -> None:
        super().finish_weight_update()
        assert self._transfer is not None
        self._transfer.shutdown()  # it only closes the last buffer, so that the learner can free it


def _place(source: WeightSource) -> Broadcast:
    assert isinstance(source.place, Broadcast), f"version {source.version} is not sent to a group"
    return source.place
