"""How is vLLM's OpenAI-compatible server started for one policy? It runs until it is interrupted."""

import asyncio
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rl.chat.chat import Chat
from rl.config.environments import BudgetConfig
from rl.config.rollout import RolloutConfig
from rl.engine.arguments import ENVIRONMENT, endpoint_arguments
from rl.engine.protocol import EngineError
from rl.engine.vllm_plugin import ENDPOINT

if TYPE_CHECKING:
    from argparse import Namespace
    from socket import socket as Socket

    from vllm.engine.protocol import EngineClient


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What is served, where, and with how much room."""

    policy: Path
    name: str
    """What clients call the model."""
    host: str
    port: int
    dtype: str
    max_tokens: int
    """Longest conversation, reply included."""
    rollout: RolloutConfig
    """Memory of the engine, and how many replies it samples at the same time."""


def run_endpoint(endpoint: Endpoint, chat: Chat | None, enforcement: BudgetConfig) -> None:
    """Serve until SIGINT or SIGTERM. Without a chat, vLLM renders conversations by the chat template alone.

    Raises `EngineError` if the port is taken or vLLM cannot serve the policy.
    """
    os.environ |= {**ENVIRONMENT, ENDPOINT: str(os.getpid())}
    for name, value in {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}.items():
        os.environ.setdefault(name, value)
    from vllm.entrypoints.launchers.launcher import setup_server
    from vllm.logger import configure_logging_from_args
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        # For the engine's process: a helper of vLLM's sampler would be compiled, 15 s and a C++ compiler for nothing.
        os.environ["TORCHDYNAMO_DISABLE"] = "1"
    args = _arguments(endpoint)
    configure_logging_from_args(args)
    try:
        _, socket = setup_server(args, reuse_port=False)
    except OSError as error:
        raise EngineError(
            f"cannot listen on {endpoint.host}:{endpoint.port} ({error.strerror}): give another --port"
        ) from None
    try:
        asyncio.run(_serve(args, socket, chat, enforcement))
    except (RuntimeError, ValueError) as error:  # of the engine's process, which has printed its cause
        raise EngineError(f"vLLM cannot serve {endpoint.policy}: {error}") from error
    finally:
        socket.close()


def _arguments(endpoint: Endpoint) -> "Namespace":
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.platforms import current_platform
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    args = make_arg_parser(FlexibleArgumentParser()).parse_args([])
    assert args is not None
    arguments = endpoint_arguments(endpoint.max_tokens, endpoint.rollout, current_platform.is_cpu())
    where = {"host": endpoint.host, "port": endpoint.port, "uvicorn_log_level": "warning"}
    # Named, because vLLM would serve float32 as bfloat16.
    model = {"model": str(endpoint.policy), "served_model_name": [endpoint.name], "dtype": endpoint.dtype}
    for name, value in {**where, **model, **arguments}.items():
        assert hasattr(args, name), f"vLLM's server has no argument {name}"
        setattr(args, name, value)
    return args


async def _serve(args: "Namespace", socket: "Socket", chat: Chat | None, enforcement: BudgetConfig) -> None:
    """vLLM's own sequence (`launchers.api_server.entry`), with our chat completions in place of its own."""
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.api_server.entry import build_async_engine_client
    from vllm.entrypoints.launchers.app import build_app
    from vllm.entrypoints.launchers.launcher import serve_http

    from rl.engine.endpoint.chat_serving import PolicyChat

    async with build_async_engine_client(args) as client:
        _end_quietly(client)
        tasks = await client.get_supported_tasks()
        app = build_app(args, tasks, client.model_config)
        await init_app_state(client, app.state, args, tasks)
        if chat is not None:
            app.state.openai_serving_chat = PolicyChat(app.state.openai_serving_chat, chat, enforcement)
        # Other ways to hold a conversation would render it by the template alone, without tools and budgets.
        app.state.openai_serving_chat_batch = None
        app.state.openai_serving_responses = None
        app.state.anthropic_serving_messages = None
        how = " by its chat template alone, without tools, reasoning and budgets" if chat is None else ""
        where = f"http://{args.host}:{args.port}/v1"
        print(f"serving {args.served_model_name[0]} at {where}{how} (stop with Ctrl-C)", flush=True)
        stopped = await serve_http(app, sock=socket, host=args.host, port=args.port, log_level=args.uvicorn_log_level)
    await stopped


def _end_quietly(client: "EngineClient") -> None:
    """vLLM reports the end of its own engine as an error, with a traceback."""
    shutdown = client.shutdown

    def quietly(timeout: float | None = None) -> None:
        logging.getLogger("vllm").setLevel(logging.CRITICAL)
        shutdown(timeout=timeout)

    client.shutdown = quietly
