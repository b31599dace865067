"""In which order does an engine call vLLM to load a policy version, and what does it answer?"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from rl.config.experiment import ExperimentConfig
from rl.engine.protocol import EngineError
from rl.weights.source import WeightsError, WeightSource

if TYPE_CHECKING:
    from vllm import LLMEngine


class Client(Protocol):
    """vLLM's calls of a weight transfer, each to all cards of an engine."""

    def init_weight_transfer_engine(self, init_info: Mapping[str, Any]) -> None: ...

    def start_weight_update(self) -> None: ...

    def update_weights(self, update_info: Mapping[str, Any]) -> None:
        """Raises `WeightsError` with the old weights untouched."""
        ...

    def finish_weight_update(self, weight_version: str) -> None: ...

    def loaded_hashes(self) -> list[str]:
        """What each card last loaded."""
        ...


class WeightLoader:
    """Loads versions into the engine of this process. The engine must not step meanwhile."""

    def __init__(self, config: ExperimentConfig, client: Client) -> None:
        self._config, self._client = config, client
        self._connected = ""

    def load(self, source: WeightSource) -> str:
        """The hash of the bytes that were loaded.

        Raises `EngineError`: with the old weights if the new ones are damaged, or if the cards loaded different ones.
        Raises `WeightsLost` before anything has begun: that is no failure of this engine.
        """
        transport = self._config.weights
        update: dict[str, Any] = {"transport": transport, "precision": self._config.precision}
        if (adapter := self._config.learner.adapter) is not None:
            update["adapter_scale"] = adapter.scale
        connection = transport.connection(source)
        if connection is not None and connection.key != self._connected:
            self._client.init_weight_transfer_engine(connection.init_info)
            self._connected = connection.key
        update["source"] = transport.fetched(source)  # before vLLM begins, because it takes no beginning back
        self._client.start_weight_update()
        try:
            self._client.update_weights(update)
        except WeightsError as error:
            raise EngineError(str(error)) from error
        self._client.finish_weight_update(str(source.version))
        digests = set(self._client.loaded_hashes())
        if len(digests) != 1:
            raise EngineError(
                f"the cards of the engine loaded different weights as version {source.version}: {digests}"
            )
        return digests.pop()


class VllmClient:
    """The client of vLLM's engine in this process."""

    def __init__(self, llm: "LLMEngine") -> None:
        self._llm = llm

    def init_weight_transfer_engine(self, init_info: Mapping[str, Any]) -> None:
        self._llm.collective_rpc("init_weight_transfer_engine", kwargs={"init_info": dict(init_info)})

    def start_weight_update(self) -> None:
        self._llm.collective_rpc("start_weight_update")

    def update_weights(self, update_info: Mapping[str, Any]) -> None:
        self._llm.collective_rpc("update_weights", kwargs={"update_info": dict(update_info)})

    def finish_weight_update(self, weight_version: str) -> None:
        self._llm.collective_rpc("finish_weight_update")
        self._llm.set_weight_version(weight_version)

    def loaded_hashes(self) -> list[str]:
        return self._llm.collective_rpc(_loaded_hash)


def _loaded_hash(worker: Any) -> str:
    return worker.weight_transfer_engine.loaded_hash
