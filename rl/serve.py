"""How is a policy served as an OpenAI-compatible endpoint, with the chat format and budgets of its training?"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rl.chat.chat import Chat
from rl.chat.format import ChatError
from rl.chat.template_alone import TemplateAlone, load_served_chat
from rl.config.checkpoint_files import CheckpointFileError, max_context, read_config
from rl.config.errors import ConfigError
from rl.config.rollout import RolloutConfig
from rl.config.served import Served
from rl.engine.endpoint.server import Endpoint, run_endpoint
from rl.export import served_folder


def serve(source: str, *, host: str, port: int, name: str, max_tokens: int | None, rollout: RolloutConfig) -> None:
    """Serve a run, one of its checkpoints, an export, or any checkpoint of a causal model, until it is interrupted.

    `name` is what clients call it, by default the name of its folder. `rollout` gives the engine's memory and the
    number of replies at the same time. Raises `ConfigError`, `ExportError` and `EngineError`.
    """
    with served_folder(Path(source)) as folder:
        served = Served.read(folder)
        chat = _chat(folder, served)
        model = _model(folder)
        context = max_context(model)
        most = max_tokens or min(served.max_tokens, context or served.max_tokens)
        if context is not None and most > context:
            raise ConfigError(f"--max-tokens {most}: the checkpoint's context is {context} tokens")
        dtype = str(model.get("dtype") or model.get("torch_dtype") or "auto")
        called = name or Path(source).resolve().name
        run_endpoint(Endpoint(folder, called, host, port, dtype, most, rollout), chat, served.budget)


def engine_memory(
    max_in_flight: int, kv_cache_gib: float | None, gpu_memory_share: float | None, gpus: int
) -> RolloutConfig:
    """The engine's keys of an experiment. Raises `ConfigError`."""
    try:
        return RolloutConfig(
            max_in_flight=max_in_flight,
            kv_cache_gib=kv_cache_gib,
            gpu_memory_share=gpu_memory_share,
            gpus_per_worker=gpus,
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"--{first['loc'][0]}: {first['msg']}".replace("_", "-")) from None


def _chat(folder: Path, served: Served) -> Chat | None:
    """None where vLLM renders conversations by the template alone."""
    try:
        chat = load_served_chat(folder, served.chat)
        return None if isinstance(chat, TemplateAlone) else chat
    except ChatError as error:
        raise ConfigError(str(error)) from None


def _model(folder: Path) -> Mapping[str, Any]:
    try:
        return read_config(folder)
    except CheckpointFileError as error:
        raise ConfigError(str(error)) from None
