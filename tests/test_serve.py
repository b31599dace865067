"""A served policy answers the `openai` client as it was trained: prompts, tools, reasoning, budgets, tokens."""

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import httpx
import psutil
import pytest
import torch
from openai import BadRequestError, OpenAI
from transformers import AutoModelForCausalLM

from envs.messages import Message, ToolCall, ToolSpec
from rl.chat.chat import Chat, load_chat
from rl.config.served import Served
from rl.engine.protocol import SamplingParams
from tests.families import write_policy
from tests.makers import ARITHMETIC, make_config

pytestmark = pytest.mark.slow
MAX_TOKENS = 512
SCHEMA: dict[str, Any] = {"type": "object", "properties": {"item": {"type": "string"}}, "required": ["item"]}
TOOL = ToolSpec("price", "What an item costs.", SCHEMA)
OPENAI_TOOL: Any = {
    "type": "function",
    "function": {"name": "price", "description": "What an item costs.", "parameters": SCHEMA},
}
TAUGHT = [
    Message("user", "What is the pen?"),
    Message("assistant", "", "look it up", (ToolCall("price", {"item": "pen"}),)),
    Message("tool", "7 coins", name="price"),
    Message("assistant", "It costs 7 coins, say.", "7 it is"),
]


class Endpoint(NamedTuple):
    client: OpenAI
    folder: Path
    chat: Chat


def teach(folder: Path, chat: Chat, messages: Sequence[Message], tools: Sequence[ToolSpec] = ()) -> None:
    """Train the policy until it says the conversation by heart."""
    ids, mask = chat.conversation(messages, tools, "unlimited")
    model = AutoModelForCausalLM.from_pretrained(folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    batch = torch.tensor([ids])
    labels = torch.where(torch.tensor([mask]), batch, -100)
    loss = torch.tensor(torch.inf)
    for _ in range(300):
        loss = model(input_ids=batch, labels=labels).loss
        if loss.item() < 1e-3:
            break
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 1e-2
    model.save_pretrained(folder)


def start(folder: Path, port: int, *options: str, output: IO[bytes] | None = None) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "rl", "serve", str(folder), "--port", str(port), "--name", "mine"]
    process = subprocess.Popen([*command, "--kv-cache-gib", "0.25", *options], stdout=output, stderr=output)
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        try:
            httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).raise_for_status()
            return process
        except httpx.HTTPError:
            time.sleep(0.5)
    process.kill()
    raise AssertionError(f"the endpoint did not start (exit code {process.poll()})")


@contextlib.contextmanager
def serving(folder: Path, *options: str, kill: bool = False, output: IO[bytes] | None = None) -> Iterator[OpenAI]:
    """A client of an endpoint of this policy. At the end nothing is left of the endpoint, even if it is killed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = start(folder, port, *options, output=output)
    yield OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
    children = psutil.Process(process.pid).children(recursive=True)
    assert children  # the engine's process
    process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
    assert process.wait(60) == (-signal.SIGKILL if kill else 0)
    assert psutil.wait_procs(children, timeout=30)[1] == []


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    folder = write_policy("qwen3", tmp_path_factory.mktemp("serve") / "policy", tuple(m.content for m in TAUGHT))
    chat = load_chat(folder, "auto")
    teach(folder, chat, TAUGHT, (TOOL,))
    with serving(folder, "--max-tokens", str(MAX_TOKENS), kill=True) as client:
        yield Endpoint(client, folder, chat)


def ask(endpoint: Endpoint, messages: list[dict[str, Any]], **more: Any) -> Any:
    arguments: dict[str, Any] = {"temperature": 0, "max_tokens": 64, **more}
    return endpoint.client.chat.completions.create(model="mine", messages=messages, **arguments)  # type: ignore[arg-type]


def test_a_conversation_with_a_tool_is_held_as_it_was_trained(endpoint: Endpoint) -> None:
    messages: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "text", "text": TAUGHT[0].content}]}]
    first = ask(endpoint, messages, tools=[OPENAI_TOOL], extra_body={"return_token_ids": True})
    (choice,) = first.choices
    assert (choice.finish_reason, choice.message.content, choice.message.reasoning) == (
        "tool_calls",
        None,
        "look it up",
    )
    (call,) = choice.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("price", {"item": "pen"})
    messages += [
        choice.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "7 coins"},
    ]
    second = ask(endpoint, messages, tools=[OPENAI_TOOL], extra_body={"return_token_ids": True})
    (choice,) = second.choices
    assert (choice.finish_reason, choice.message.content) == ("stop", "It costs 7 coins, say.")
    assert choice.message.reasoning == "7 it is" and not choice.message.tool_calls
    ids, _ = endpoint.chat.conversation(TAUGHT, (TOOL,), "unlimited")  # every token, of all turns
    assert (*second.prompt_token_ids, *choice.token_ids) == ids
    assert second.usage.completion_tokens_details.reasoning_tokens > 2


def test_a_stream_adds_up_to_the_same_reply(endpoint: Endpoint) -> None:
    messages = [{"role": "user", "content": TAUGHT[0].content}]
    parts = list(ask(endpoint, messages, tools=[OPENAI_TOOL], stream=True))
    deltas = [part.choices[0].delta for part in parts]
    assert "".join(getattr(delta, "reasoning", None) or "" for delta in deltas) == "look it up"
    assert sum(bool(getattr(delta, "reasoning", None)) for delta in deltas) > 1  # in parts, while it is sampled
    assert "".join(delta.content or "" for delta in deltas) == ""
    (call,) = [call for delta in deltas for call in delta.tool_calls or ()]
    assert (call.function.name, json.loads(call.function.arguments)) == ("price", {"item": "pen"})
    assert parts[-1].choices[0].finish_reason == "tool_calls"


def test_a_budget_of_nothing_switches_thinking_off_in_streams_and_in_every_choice(endpoint: Endpoint) -> None:
    messages = [{"role": "user", "content": TAUGHT[0].content}]
    off: dict[str, Any] = {"extra_body": {"thinking_token_budget": 0}, "max_tokens": 8}
    choices = ask(endpoint, messages, n=2, temperature=1.0, **off).choices
    assert [choice.message.reasoning for choice in choices] == [None, None]
    deltas = [part.choices[0].delta for part in ask(endpoint, messages, stream=True, **off)]
    assert not any(getattr(delta, "reasoning", None) for delta in deltas)
    assert "".join(delta.content or "" for delta in deltas) == ask(endpoint, messages, **off).choices[0].message.content


def test_tokens_are_those_that_the_engine_samples_in_training(endpoint: Endpoint) -> None:
    """With every budget: those of the engine of a run, from the same prompt and seed."""
    from rl.engine.vllm_core import VllmEngine

    config = make_config(
        policy={"path": endpoint.folder, "max_tokens": MAX_TOKENS}, rollout={"max_in_flight": 12, "kv_cache_gib": 0.25}
    )
    messages = [Message("system", "short"), Message("user", "What now?")]
    told = [{"role": message.role, "content": message.content} for message in messages]
    engine = VllmEngine(endpoint.folder, config, lockstep_steps=0)

    async def sampled(budget: Any, seed: int) -> tuple[int, ...]:
        dialogue = endpoint.chat.begin(messages, (), budget)
        limit = dialogue.thinking_limit(config.budget, 80)
        params = SamplingParams(80, 1.3, 1.0, seed, endpoint.chat.stop_ids, limit)
        (lane,) = engine.open_lanes(1)
        reply = await lane.sample(dialogue.prompt_ids, params)
        lane.close()
        forced.append(limit is not None and any(limit.forced_mask(reply.tokens.ids.tolist())))
        return tuple(reply.tokens.ids.tolist())

    forced: list[bool] = []
    asked: dict[Any, dict[str, Any]] = {"unlimited": {}, "off": {"reasoning_effort": "none"}}
    asked[1] = {"extra_body": {"thinking_token_budget": 1}}
    asked["low"] = {"reasoning_effort": "low"}
    asked["efficient"] = {"extra_body": {"chat_template_kwargs": {"reasoning_effort": "efficient"}}}
    try:
        for budget, arguments in asked.items():
            for seed in range(3):
                extra = {"return_token_ids": True, **arguments.get("extra_body", {})}
                rest = {name: value for name, value in arguments.items() if name != "extra_body"}
                answer = ask(
                    endpoint, told, temperature=1.3, top_p=1.0, max_tokens=80, seed=seed, extra_body=extra, **rest
                )
                assert tuple(answer.choices[0].token_ids) == asyncio.run(sampled(budget, seed)), (budget, seed)
    finally:
        engine.shutdown()
    assert any(forced)


@pytest.mark.parametrize(
    ("messages", "more", "words"),
    [
        ([], {}, "must begin with a user's or system message"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], {}, "must not be the assistant's"),
        ([{"role": "user", "content": "a"}], {"tools": [OPENAI_TOOL], "tool_choice": "required"}, "auto or none"),
        ([{"role": "user", "content": "a"}], {"response_format": {"type": "json_object"}}, "switch thinking off"),
        ([{"role": "user", "content": "word " * 600}], {}, "takes at most 512 with the reply"),
        (
            [{"role": "user", "content": "a"}],
            {"reasoning_effort": "low", "extra_body": {"thinking_token_budget": 8}},
            "a policy is told one of them",
        ),
        (
            [{"role": "user", "content": "a"}],
            {"extra_body": {"chat_template_kwargs": {"reasoning_effort": "little"}}},
            "must be none or one of efficient, minimal, low, .*, got 'little'",
        ),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,a"}}]}],
            {},
            "parts of type text",
        ),
    ],
)
def test_what_cannot_be_answered_is_told(
    messages: list[dict[str, Any]], more: dict[str, Any], words: str, endpoint: Endpoint
) -> None:
    with pytest.raises(BadRequestError, match=words):
        ask(endpoint, messages, **more)


def test_what_would_render_conversations_by_the_template_alone_is_switched_off(endpoint: Endpoint) -> None:
    for path, body in (("responses", {"input": "a"}), ("messages", {"max_tokens": 5})):
        body |= {"model": "mine", "messages": [{"role": "user", "content": "a"}]}
        answer = httpx.post(f"{endpoint.client.base_url}{path}", json=body, timeout=60)
        assert answer.status_code in (404, 501), answer.text


def test_an_environment_is_played_against_the_endpoint(endpoint: Endpoint, tmp_path: Path) -> None:
    out = tmp_path / "rollouts.jsonl"
    url = str(endpoint.client.base_url)
    command = [sys.executable, "-m", "envs", "eval", ARITHMETIC, "--url", url, "--model", "mine"]
    command += ["--tasks", "2", "--tries", "1", "--max-tokens", "16", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    watched = subprocess.run(
        [sys.executable, "-m", "envs", "play", ARITHMETIC, "--url", url, "--model", "mine"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert watched.returncode == 0 and "reward" in watched.stdout, watched.stdout + watched.stderr
    outcomes = [json.loads(line)["outcome"] for line in out.read_text().splitlines()]
    assert outcomes and all(outcome == "ok" for outcome in outcomes)


def test_a_taken_port_and_what_is_no_policy_are_told(endpoint: Endpoint, tmp_path: Path) -> None:
    for source, words, code in ((endpoint.folder, "give another --port", 1), (tmp_path, "neither a run folder", 2)):
        command = [sys.executable, "-m", "rl", "serve", str(source), "--port", str(endpoint.client.base_url.port)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert (done.returncode, words in done.stderr) == (code, True), done.stderr


def test_a_terminal_shows_the_address_and_no_noise_of_libraries(tmp_path: Path) -> None:
    """From start to stop: no banners, no warnings about what this machine has not, nothing about leaked semaphores."""
    policy = write_policy("llama", tmp_path / "policy")
    with (tmp_path / "output").open("wb") as output, serving(policy, "--max-tokens", "64", output=output) as client:
        assert client.models.list().data[0].id == "mine"
    address = str(client.base_url).rstrip("/")
    assert (tmp_path / "output").read_text() == f"serving mine at {address} (stop with Ctrl-C)\n"


def test_the_cause_of_a_failed_start_is_shown(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rl", "serve", str(write_policy("llama", tmp_path)), "--kv-cache-gib", "1e-7"]
    done = subprocess.run([*command, "--port", "0"], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 1
    assert "No available memory for the cache blocks" in done.stderr and "error: vLLM cannot serve" in done.stderr


def test_defaults_of_an_export_say_how_it_was_trained(tmp_path: Path) -> None:
    config = make_config(policy={"path": "models/none", "max_tokens": 99}, budget={"grace_tokens": 3})
    Served.of(config).write(tmp_path)
    read = Served.read(tmp_path)
    assert (read.max_tokens, read.budget.grace_tokens, read.chat) == (99, 3, "auto")
