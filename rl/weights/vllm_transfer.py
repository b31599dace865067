"""How does a vLLM worker load the weights that one of our transports delivers?

It follows vLLM's order of calls, `start_weight_update`, `update_weights`, `finish_weight_update`, and uses vLLM's
layerwise reload.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.layers.attention import is_deferred_attention_layer
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

from rl.precision.number_format import NumberFormat
from rl.weights.merged import check_adapter, with_adapter
from rl.weights.names import restored_tensors
from rl.weights.source import WeightSource
from rl.weights.transport import Received, Transport


class SupportsLoading(Protocol):
    """The method of every vLLM model that loads weights."""

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> object: ...


class IncompleteWeightsError(ValueError):
    """Some layers did not get all their weights; the model holds a mixture of two versions."""


@dataclass
class NothingToAgreeOn(WeightTransferInitInfo):
    """Our transports need no initialisation."""


@dataclass
class Update(WeightTransferUpdateInfo):
    """What `rl.engine.vllm_core` passes to the transfer."""

    source: WeightSource
    transport: Transport
    precision: NumberFormat
    adapter_scale: float = 1.0
    """What an adapter's product is multiplied by: alpha / rank."""


class ReceivedWeights(WeightTransferEngine[NothingToAgreeOn, Update]):
    """Registered with vLLM's factory by `rl.engine.vllm_plugin`; one update is a whole version."""

    init_info_cls = NothingToAgreeOn
    update_info_cls = Update
    loaded_hash = ""
    """Hash of the bytes that the last update was loaded from."""
    _base: Received | None = None
    """An adapter's base, mapped from where it was published."""

    def init_transfer_engine(self, init_info: NothingToAgreeOn) -> None:
        """Does nothing: there is no connection to set up."""

    def start_weight_update(self) -> None:
        """Does nothing yet: the model stays whole until the weights have been verified."""

    def receive_weights(self, update_info: Update) -> None:
        """Receive and verify a version, then load it.

        Raises `WeightsError` with the old weights untouched, or `IncompleteWeightsError` with a mixture of both.
        """
        # Receive and verify first: after `initialize_layerwise_reload` the old weights are gone.
        weights = self._receive(update_info.transport, update_info.source)
        restored = self._policy(weights, update_info)
        initialize_layerwise_reload(self.model)
        cast(SupportsLoading, self.model).load_weights(restored)
        self._check_complete(update_info.source.version)
        self.loaded_hash = weights.hash  # last: the hash is the acknowledgement

    def _receive(self, transport: Transport, source: WeightSource) -> Received:
        return transport.receive(source)

    def _check_complete(self, version: int) -> None:
        """Before `finalize_layerwise_reload`, which fills incomplete layers without an error."""
        if layers := _incomplete_layers(self.model):
            raise IncompleteWeightsError(
                f"version {version} leaves {len(layers)} layers without all their weights, such as {layers[0]}; publish"
                " every tensor of the checkpoint (rl.weights.names.checkpoint_tensors)"
            )

    def _policy(self, weights: Received, update_info: Update) -> Iterable[tuple[str, torch.Tensor]]:
        """The policy's weights, restored from what was published. Raises `WeightsError`."""
        precision, dtype, source = update_info.precision, self.model_config.dtype, update_info.source
        if source.base is None:
            return restored_tensors(weights.tensors, precision, dtype)
        if self._base is None or self._base.hash != source.base.hash:
            self._base = self._receive(update_info.transport, source.base)
        check_adapter((name for name, _ in weights.tensors), (name for name, _ in self._base.tensors))
        base = restored_tensors(self._base.tensors, precision, dtype)
        # Before the reload: its layers have no memory at first.
        device = next(self.model.parameters()).device
        return with_adapter(base, dict(weights.tensors), update_info.adapter_scale, device)

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        _process_tied_heads(self.model)  # after the reload: the head packs a copy of the new embedding

    def shutdown(self) -> None:
        """Does nothing: no resource is held between updates."""


def _process_tied_heads(model: torch.nn.Module) -> None:
    """Update heads that share the embedding's weights.

    vLLM's reload processes only the layer that was loaded, the embedding. On CPUs the head computes with its own packed
    copy of these weights.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, VocabParallelEmbedding)]
    embeddings = {id(layer.weight) for layer in layers if not isinstance(layer, ParallelLMHead)}
    for layer in layers:
        if isinstance(layer, ParallelLMHead) and id(layer.weight) in embeddings:
            layer.quant_method.process_weights_after_loading(layer)


def _incomplete_layers(model: torch.nn.Module) -> list[str]:
    """Layers that vLLM's reload would silently fill with old weights or uninitialised memory.

    Checkpoints may lack an embedding's padding rows, all of a tied head, and attention's optional scales.
    """
    incomplete = []
    for name, layer in model.named_modules():
        info = get_layerwise_info(layer)
        if not info.can_load() or is_deferred_attention_layer(layer):
            continue
        if isinstance(layer, VocabParallelEmbedding) and (info.load_numel or isinstance(layer, ParallelLMHead)):
            continue
        # Buffers do not count: caches such as the rotary tables are not in checkpoints.
        sizes = (getattr(tensor, "weight_loader_numel", tensor.numel()) for tensor in layer.parameters(recurse=False))
        if info.load_numel < (expected := sum(sizes)):
            incomplete.append(f"{name} ({info.load_numel:,} of {expected:,} numbers)")
    return incomplete
