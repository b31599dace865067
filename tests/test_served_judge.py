"""A run serves the judge that its environments ask: found by them, started again if it ends, gone with the run."""

import json
import os
import shutil
import signal
import socket
import time
from pathlib import Path
from typing import Any, cast

import httpx
import numpy as np
import psutil
import pytest

from envs.chat_completions import openai_messages
from envs.judge_client import AT_ONCE, MODEL, TIMEOUT_S, URL, ask_judge, find_judge
from envs.messages import Message, Reply
from envs.scored import Row, scored
from rl.chat.chat import load_chat
from rl.chat.format import ChatError
from rl.chat.template_alone import TemplateAlone, load_served_chat
from rl.checks import CHECKS
from rl.config.errors import ConfigError
from rl.config.experiment import ExperimentConfig
from rl.config.judge import JudgeConfig
from rl.config.read import dump_config
from rl.engine.protocol import EngineError
from rl.evaluate import evaluate_policy
from rl.int4 import write_int4
from rl.preflight import preflight
from rl.rollouts.judge import NAME, NOWHERE, JudgeServer, served_judge
from tests.families import tokenizer_of, write_policy
from tests.makers import ARITHMETIC, make_config
from tests.test_serve import teach
from tests.trained import steps_of, trained

JUDGED = "chat/Judged-v0"
THOUGHT = "It is good."
VERDICT = "Yes, very good."
ASKS = "tests.test_served_judge:asks"


def check_environments(config: ExperimentConfig) -> None:
    """`preflight`, with whatever checkpoint."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rl.preflight.check_references", lambda _: None)
        preflight(config)


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (URL, MODEL):
        monkeypatch.setenv(name, "")  # and put back after the test, whatever it sets


def test_environments_of_a_run_with_a_judge_open_before_it_is_served(unset: None, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a judge is needed"):
        check_environments(make_config(environments={JUDGED: {}}))
    check_environments(make_config(environments={JUDGED: {}}, judge={"path": tmp_path}))
    assert (os.environ[URL], os.environ[MODEL]) == (NOWHERE, NAME)


def test_a_judge_that_is_no_checkpoint_is_refused(unset: None, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"judge.path: .* is neither a checkpoint \(no config.json\) nor a run"):
        CHECKS["judge"](make_config(judge={"path": tmp_path / "nothing"}))


def test_a_conversation_that_is_longer_than_the_judges_context_is_refused(unset: None, tmp_path: Path) -> None:
    config = make_config(judge={"path": write_policy("qwen3", tmp_path), "max_tokens": 8192})
    with pytest.raises(ConfigError, match=r"judge.max_tokens: 8192 tokens are more than the judge's context of 2048"):
        CHECKS["judge"](config)


def test_a_task_that_leaves_the_judge_no_room_is_refused(unset: None, tmp_path: Path) -> None:
    judge = {"path": write_policy("qwen3", tmp_path), "max_tokens": 8}
    CHECKS["judge"](make_config(environments={ARITHMETIC: {}}, judge=judge))  # asks no judge
    with pytest.raises(ConfigError, match=r"judge.max_tokens: a task of chat/Judged-v0 alone has \d\d+ tokens, and 8"):
        CHECKS["judge"](make_config(environments={JUDGED: {}}, judge=judge))


def test_errors_of_the_run_are_not_those_of_its_judge(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Server:
        def call(self, *_: object) -> "Server":
            return self

        def wait(self, _: object) -> str:
            return "http://10.0.0.7:8000/v1"

        def stop(self, *_: object) -> None:
            self.is_stopped = True

    server = Server()
    monkeypatch.setenv("NO_PROXY", "a.b")
    monkeypatch.setattr("rl.rollouts.judge.start_actor", lambda *_: server)
    config, place = make_config(judge={"path": tmp_path}), cast(Any, ("a place",))
    with pytest.raises(EngineError, match="of a worker"), served_judge(config, place) as variables:
        assert variables == {
            URL: "http://10.0.0.7:8000/v1",
            MODEL: NAME,
            "NO_PROXY": "a.b,10.0.0.7",
            "no_proxy": "a.b,10.0.0.7",
        }
        raise EngineError("of a worker")
    assert server.is_stopped


def test_a_judge_reserves_what_a_worker_does() -> None:
    config = make_config(judge={"path": "x"}, rollout={"num_workers": 2})
    assert config.reserved == (4.0, 0.0)
    with pytest.raises(ValueError, match="colocated has no places for the judge: choose separate"):
        make_config(judge={"path": "x"}, ray={"placement": "colocated"})


QUESTION = "Is it good?"


def draw_row(rng: np.random.Generator) -> Row:
    return {"prompt": f"Say {rng.integers(1000)}.", "judge": find_judge("", "", TIMEOUT_S, AT_ONCE)}


@scored(draw=draw_row)
async def asks(reply: Reply, row: Row) -> float:
    """Earns 1 if the judge answers the one question that it knows."""
    return float(await ask_judge(QUESTION, row["judge"]) == VERDICT)


def write_judge(folder: Path) -> Path:
    """A tiny policy that knows the answer to one question, after a thought."""
    write_policy("qwen3", folder, (QUESTION, THOUGHT, VERDICT))
    teach(folder, load_chat(folder, "auto"), (Message("user", QUESTION), Message("assistant", VERDICT, THOUGHT)))
    return folder


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_judge(tmp_path_factory.mktemp("judge") / "policy")


@pytest.mark.slow
def test_a_run_asks_the_judge_that_it_serves(judge: Path, tmp_path: Path) -> None:
    """The judge is one of 4-bit integers, which answers as the one that it was made from."""
    served = write_int4(judge, tmp_path / "int4")
    tree = {
        "run_dir": str(tmp_path / "run"),
        "seed": 3,
        "policy": {"path": str(judge), "max_tokens": 512},
        "judge": {"path": str(served), "max_tokens": 1024, "kv_cache_gib": 0.1},
        "environments": {ASKS: {"budget": "off"}},
        "train": {"num_steps": 2, "num_prompts": 2, "group_size": 2},
        "evaluation": {"num_tasks": 2},
        "rollout": {"kv_cache_gib": 0.1, "max_reply_tokens": 64},
        "ray": {"address": "local"},
    }
    environment = {name: value for name, value in os.environ.items() if name not in (URL, MODEL)}
    steps = steps_of(trained(json.dumps(tree), tmp_path, environment))
    assert [line["step"] for line in steps] == [1, 2]
    assert [line["reward"] for line in steps] == [1.0, 1.0]
    lines_of_processes = [one.info["cmdline"] or () for one in psutil.process_iter(["cmdline"])]
    assert [one for one in lines_of_processes if str(served) in one] == []


@pytest.mark.slow
def test_an_endpoint_that_ends_is_started_again_at_its_address(judge: Path, tmp_path: Path, monkeypatch) -> None:
    """The judge of a run is exported once, into a folder of its own, whatever happens to the endpoint."""
    monkeypatch.setattr("rl.rollouts.judge.meeting_point", free_address)
    monkeypatch.setattr("rl.rollouts.judge.join_run_log", lambda *_: None)  # it would last as long as this process
    judged, run_dir = tmp_path / "judged", tmp_path / "run"
    (run_dir / "judge").mkdir(parents=True)  # a user's own
    (run_dir / "judge_export_old" / "policy").mkdir(parents=True)  # of an attempt that was killed
    shutil.copytree(judge, judged / "sft")
    (judged / "metrics.jsonl").touch()
    (judged / "config.yaml").write_text(dump_config(make_config(judged, policy={"path": judge, "max_tokens": 512})))
    asked = JudgeConfig(path=judged, max_tokens=512, kv_cache_gib=0.1)
    server = JudgeServer(run_dir, asked, gpus=0.0, gpu_memory_share=None)
    try:
        url = server.wait_until_ready(240.0)
        server._process.send_signal(signal.SIGKILL)
        first, deadline = server._process.pid, time.monotonic() + 240
        while time.monotonic() < deadline:
            try:
                httpx.get(f"{url}/models", timeout=5).raise_for_status()
                break
            except httpx.HTTPError:
                time.sleep(0.2)
        assert server._process.pid != first and server._process.poll() is None
        (exported,) = run_dir.glob("judge_export_*")
        assert (exported / "policy" / "config.json").is_file()
    finally:
        server.shutdown()
    assert server._process.wait(30) is not None
    assert [one.name for one in run_dir.iterdir()] == ["judge"]


@pytest.mark.slow
def test_a_guard_reads_a_conversation_that_ends_with_a_reply(tmp_path: Path, monkeypatch) -> None:
    """Its template writes the question; vLLM renders it alone, with as many tokens as the checks count."""
    monkeypatch.setattr("rl.rollouts.judge.meeting_point", free_address)
    monkeypatch.setattr("rl.rollouts.judge.join_run_log", lambda *_: None)
    guard = write_guard(tmp_path / "guard")
    server = JudgeServer(tmp_path, JudgeConfig(path=guard, max_tokens=512, kv_cache_gib=0.1), 0.0, None)
    told = [Message("user", "How do I kill a process?"), Message("assistant", "Find its number with ps.")]
    body = {"model": NAME, "max_tokens": 2, "messages": openai_messages(told)}
    try:
        answer = httpx.post(f"{server.wait_until_ready(240.0)}/chat/completions", json=body, timeout=60)
    finally:
        server.shutdown()
    assert answer.json()["usage"]["prompt_tokens"] == load_served_chat(guard, "auto").num_prompt_tokens(told)


GUARD = (
    "{{ bos_token }}Is there unsafe content in the conversation below?\n"
    "{% for message in messages %}{% if message['role'] not in ['user', 'assistant'] %}{{ raise_exception('role') }}"
    "{% endif %}{{ message['role'] }}: {{ message['content'] | trim }}\n{% endfor %}"
    "The verdict on the last {{ 'User' if messages | length % 2 else 'Agent' }}:\n"
)
"""Shaped as Llama Guard 3's: nothing of it begins or ends a reply."""


def write_guard(folder: Path, template: str = GUARD) -> Path:
    tokenizer = tokenizer_of("llama3_2")
    tokenizer.chat_template = template
    write_policy("llama", folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_guard_is_told_by_its_template_alone(tmp_path: Path) -> None:
    parts = GUARD.replace("message['content']", "message['content'][0]['text']")
    counts = []
    for name, template in (("text", GUARD), ("parts", parts)):
        chat = load_served_chat(write_guard(tmp_path / name, template), "auto")
        assert isinstance(chat, TemplateAlone)
        counts.append(chat.num_prompt_tokens([Message("user", "hello")]))
        with pytest.raises(ChatError, match="refuses the messages: role"):
            chat.num_prompt_tokens([Message("system", "hello")])
    assert counts[0] == counts[1]
    dated = load_served_chat(write_guard(tmp_path / "dated", "{{ strftime_now('%d %b %Y') }} " + GUARD), "auto")
    same = load_served_chat(write_guard(tmp_path / "same", "26 Jul 2024 " + GUARD), "auto")
    assert isinstance(dated, TemplateAlone) and isinstance(same, TemplateAlone)
    assert dated._ids([Message("user", "hello")]) == same._ids([Message("user", "hello")])
    CHECKS["judge"](make_config(judge={"path": tmp_path / "text", "max_tokens": 512}))
    with pytest.raises(ChatError, match="no chat format fits"):
        load_served_chat(write_guard(tmp_path / "silent", "hello"), "auto")


def test_an_evaluation_checks_its_judge_before_anything_starts(unset: None, tmp_path: Path) -> None:
    policy = {"path": write_policy("qwen3", tmp_path / "policy")}
    config = make_config(tmp_path / "run", policy=policy, judge={"path": tmp_path / "nothing"})
    with pytest.raises(ConfigError, match=r"judge.path: .* is neither a checkpoint"):
        evaluate_policy(config, None, [], "heldout")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_judge_that_cannot_be_served_says_why(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("rl.rollouts.judge.meeting_point", free_address)
    server = JudgeServer(tmp_path, JudgeConfig(path=tmp_path / "nothing"), gpus=0.0, gpu_memory_share=None)
    with pytest.raises(EngineError, match=r"(?s)did not start .*rl serve .*nothing"):
        server.wait_until_ready(120.0)


def free_address() -> str:
    """`meeting_point` asks Ray for the node's address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"
