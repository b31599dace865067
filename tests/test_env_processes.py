"""Environments in processes of their own: what one does costs its episode only; rollouts equal those of threads."""

import asyncio
import dataclasses
import errno
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from envs.messages import Message
from envs.registry import environment_ids, is_built_in
from rl.data_types import Outcome, Rollout
from rl.engine.protocol import SampledReply
from rl.rollouts.env_processes import EXPENSIVE_S, MEASURED_S, EnvProcesses
from rl.rollouts.env_runner import EnvRunner
from rl.rollouts.env_zygote import ending_with
from rl.rollouts.frames import FrameError, frame, next_frame, read_answer
from rl.rollouts.group_score import with_group_scores
from rl.rollouts.play import Player, play
from tests.echo import soon
from tests.hostile_play import Table, gold_text
from tests.makers import make_config, make_reply
from tests.process_stage import OBEDIENT, Stage
from tests.scripted import CharacterChat, ScriptedEngine

TOO_LONG = "step took longer than 0.5 s (rollout.step_timeout_s)"


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    stage = Stage(tmp_path_factory.mktemp("obedient"))
    yield stage
    stage.close()


def is_gone(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


@pytest.mark.parametrize(
    ("command", "outcome", "told"),
    [
        ("crash", "env_error", "its process was killed by SIGSEGV, with "),
        ("exit", "env_error", "its process ended with exit status 3, during step"),
        ("be_killed", "infra_error", "its process was killed by SIGKILL, with "),
        ("hog", "env_error", "step raised MemoryError: more than the 64 MiB of rollout.env_memory_mib"),
        pytest.param("loop", "env_timeout", TOO_LONG, marks=pytest.mark.slow),
        ("match", "env_timeout", TOO_LONG),
        pytest.param("wait_long", "env_timeout", TOO_LONG, marks=pytest.mark.slow),
        ("raise_error", "env_error", "step raised KeyError: 'answer' ("),
        ("raise_exit", "env_error", "step raised SystemExit: 1 ("),
        ("cancel", "env_error", "step raised RuntimeError: CancelledError"),
        ("give_too_much", "env_error", "reward 2.0 is outside of its declared range [0.0, 1.0]"),
    ],
)
def test_what_an_episode_does_costs_that_episode_only(command: str, outcome: str, told: str, stage: Stage) -> None:
    bad, good, other = stage.play("more", f"{command}|more|wait", "end", num=3)
    assert (bad.outcome, bad.reward) == (Outcome(outcome), None)
    assert told in bad.error and bad.error.startswith(f"{OBEDIENT} (seed 7, split train): ")
    assert (good.outcome, good.reward, good.num_attempts) == (Outcome.OK, 1.0, 1)
    assert (other.outcome, other.reward, other.num_attempts) == (Outcome.OK, 1.0, 1)


@pytest.mark.slow
def test_a_coroutine_that_blocks_is_killed_too(stage: Stage) -> None:
    (rollout,) = stage.play("block")
    assert (rollout.outcome, "took longer than 0.5 s" in rollout.error) == (Outcome.ENV_TIMEOUT, True)


def test_an_episode_whose_process_crashed_is_played_again(stage: Stage) -> None:
    (rollout,) = stage.play("crash_once", num_retries=1)
    assert (rollout.outcome, rollout.num_attempts) == (Outcome.OK, 2)


@pytest.mark.parametrize("command", ["use_alarm", "flood", "give_a_lock", "give_own_types", "wait", "queue"])
def test_what_is_allowed_on_threads_or_in_a_main_thread_is_allowed(command: str, stage: Stage) -> None:
    (rollout,) = stage.play(command)
    assert (rollout.outcome, rollout.reward, rollout.error) == (Outcome.OK, 1.0, "")
    assert rollout.reward_parts == {"done": 1.0}


def test_an_environment_keeps_its_state_and_shares_none(stage: Stage) -> None:
    first, second = stage.play("more", "more", "draw", num=2)
    texts = [[message.content for message in rollout.messages if message.role == "user"] for rollout in (first, second)]
    assert texts[0][:3] == texts[1][:3] and texts[0][1:3] == ["step 1", "step 2"]
    assert texts[0][3] != texts[1][3]  # drawn without a seed


def test_data_is_loaded_once_and_every_environment_that_ended_alive_is_closed(tmp_path: Path) -> None:
    stage = Stage(tmp_path, step_timeout_s=3.0)  # one that a busy machine's first step does not miss
    try:
        rollouts = stage.play("end|raise_error|wait_long", num=3)
        assert [rollout.outcome for rollout in rollouts] == [Outcome.OK, Outcome.ENV_ERROR, Outcome.ENV_TIMEOUT]
        assert soon(lambda: len(stage.notes("closed")) == 3)
        assert len(stage.notes("loaded")) == 1
        assert not set(stage.notes("closed")) & set(stage.notes("loaded"))
        assert soon(lambda: all(map(is_gone, stage.notes("closed"))))
    finally:
        stage.close()


def test_what_an_environment_started_ends_with_it(stage: Stage) -> None:
    (rollout,) = stage.play("start_another", "crash")
    assert rollout.outcome is Outcome.ENV_ERROR
    (started,) = stage.notes("started")
    assert soon(lambda: is_gone(started))


def test_groups_are_compared_in_a_process(stage: Stage) -> None:
    rollouts = stage.play("end", num=2)
    engine: Any = ScriptedEngine(lambda *_: "end")
    player = Player(stage.config, CharacterChat(), engine, EnvRunner(1), 1.0, stage.processes)  # pyright: ignore[reportArgumentType]
    scored = stage.runner.run(with_group_scores(player, rollouts[0].task, rollouts))
    assert [(rollout.reward, rollout.reward_parts) for rollout in scored] == [
        (1.0, {"done": 1.0, "score": 0.0}),
        (0.5, {"done": 1.0, "score": -0.5}),
    ]


@pytest.mark.slow
def test_a_zygote_that_is_killed_costs_the_episodes_in_flight_and_is_replaced(stage: Stage) -> None:
    stage.play("end")
    num_before, zygote = len(stage.notes("loaded")), stage.notes("loaded")[-1]
    (stage.folder / "started").unlink(missing_ok=True)

    async def kill() -> int:
        while not stage.notes("started"):
            await asyncio.sleep(0.01)
        os.kill(zygote, signal.SIGKILL)
        return stage.notes("started")[0]

    killing = stage.runner.get_loop().create_task(kill())
    (rollout,) = stage.play("start_another", "loop", num_retries=1, step_timeout_s=5.0)
    assert killing.done() and soon(lambda: is_gone(killing.result()))
    assert (rollout.outcome, rollout.num_attempts) == (Outcome.ENV_TIMEOUT, 2)  # the second time it loops to its end
    assert len(stage.notes("loaded")) == num_before + 1


def test_a_zygote_that_hangs_is_killed_and_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(tmp_path)
    try:
        stage.runner.run(stage.processes.loaded())
        os.kill(stage.notes("loaded")[0], signal.SIGSTOP)
        monkeypatch.setattr("rl.rollouts.zygote_handle.END_S", 1.0)
        (rollout,) = stage.play("end", num_retries=3, reset_timeout_s=3.0)
        assert (rollout.outcome, rollout.num_attempts) == (Outcome.OK, 3)  # one late, one in flight when it was killed
        assert len(stage.notes("loaded")) == 2 and is_gone(stage.notes("loaded")[0])
    finally:
        stage.close()


@pytest.mark.slow
def test_an_environment_that_dies_while_it_is_loaded_is_told(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "tests.process_envs:DiesWhenLoaded")
    stage.runner.run(stage.processes.loaded())
    assert len(stage.notes("loaded")) == 1
    first, second = stage.play("end", num=2)
    stage.close()
    for rollout in (first, second):
        assert rollout.outcome is Outcome.ENV_ERROR
        assert "the process that its episodes are forked from was killed by SIGABRT, during reset" in rollout.error


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Obedient", "LoadsForever"])
def test_no_process_outlives_a_worker_that_is_killed(kind: str, tmp_path: Path, repo: Path) -> None:
    program = f"""
import sys
from pathlib import Path
from tests.process_stage import Stage
stage = Stage(Path(sys.argv[1]), "tests.process_envs:{kind}")
stage.play("start_another", "loop", step_timeout_s=60.0)
"""
    expected = ["loaded"] if kind == "LoadsForever" else ["loaded", "started"]
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], cwd=repo) as worker:
        has_begun = soon(lambda: all((tmp_path / name).exists() for name in expected), within_s=60.0)
        worker.kill()
    assert has_begun
    pids = [int(line) for name in expected for line in (tmp_path / name).read_text().split()]
    assert soon(lambda: all(map(is_gone, pids)))


@pytest.mark.slow
def test_an_environment_that_computes_on_threads_moves_to_processes(tmp_path: Path) -> None:
    stage = Stage(tmp_path, process=None)
    assert stage.play("more", "end")[0].reward == 1.0
    assert soon(lambda: stage.notes("closed") == [os.getpid()])

    async def spend(cpu_s: float) -> None:
        stage.processes.spent_on_thread(OBEDIENT, cpu_s)
        await asyncio.gather(*stage.processes._moving.values())

    stage.runner.run(spend(MEASURED_S - EXPENSIVE_S))
    assert stage.notes("loaded") == []
    stage.runner.run(spend(2 * EXPENSIVE_S))
    assert len(stage.notes("loaded")) == 1
    assert stage.play("more", "end")[0].reward == 1.0
    assert soon(lambda: len(stage.notes("closed")) == 2) and stage.notes("closed")[1] != os.getpid()
    stage.close()


def refuse(*arguments: object, **settings: object) -> None:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_an_environment_that_gets_no_process_stays_on_threads_and_keeps_its_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stage = Stage(tmp_path, process=None)

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr("rl.rollouts.env_processes.MEASURED_S", 0.0)
    monkeypatch.setattr("rl.rollouts.env_processes.EXPENSIVE_S", 0.0)
    for _ in range(2):
        (rollout,) = stage.play("more", "end")
        assert (rollout.outcome, rollout.error) == (Outcome.OK, "")
    assert "stays on threads: [Errno 24] Too many open files" in caplog.text
    assert not stage.processes._moving
    stage.close()


def test_a_zygote_that_could_not_be_started_again_is_started_when_it_is_needed_next(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    zygote = stage.processes.zygote_of(OBEDIENT)
    assert zygote is not None

    async def die() -> None:
        await zygote.ready()
        zygote._process.kill()
        while zygote._socket.fileno() >= 0:
            await asyncio.sleep(0.01)

    stage.runner.run(die())
    with monkeypatch.context() as patched:
        patched.setattr(subprocess, "Popen", refuse)
        (rollout,) = stage.play("end")
    assert rollout.outcome is Outcome.INFRA_ERROR and "Too many open files" in rollout.error
    assert stage.play("end")[0].outcome is Outcome.OK


def test_a_worker_reads_only_messages_and_plain_data_from_a_process() -> None:
    value = ("done", ((Message("user", "hi"),), 0.1 + 0.2, {"parts": [1, None, True]}))
    assert read_answer(pickle.dumps(value)) == value
    for wrong in (("done", Path("x")), ("done", print), "no pair"):
        with pytest.raises(FrameError):
            read_answer(pickle.dumps(wrong))


def test_a_worker_reads_no_answer_that_is_longer_than_the_bound() -> None:
    async def read(max_bytes: int) -> bytes:
        reader = asyncio.StreamReader()
        reader.feed_data(frame("x"))
        return await next_frame(reader, max_bytes)

    length = len(pickle.dumps("x", protocol=5))
    assert pickle.loads(asyncio.run(read(length))) == "x"
    with pytest.raises(FrameError, match=f"answered with {length} bytes, which is more than {length - 1}"):
        asyncio.run(read(length - 1))


def test_a_zygote_whose_worker_has_ended_before_does_not_begin_to_load() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.close()
    if (process := os.fork()) == 0:
        with ending_with(theirs):
            os._exit(7)
    theirs.close()
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0


BUILT_IN = [env_id for env_id in environment_ids() if is_built_in(env_id) and not env_id.startswith("other/")]
FAST = ("tools/Store-v0",)
NEED_A_JUDGE = {"chat/Judged-v0", "chat/Compared-v0", "chat/Safety-v0"}


@pytest.mark.parametrize(
    "env_id",
    [
        pytest.param(env_id, marks=() if env_id in FAST else pytest.mark.slow)
        for env_id in BUILT_IN
        if env_id not in NEED_A_JUDGE
    ],
)
def test_rollouts_in_processes_equal_those_on_threads(env_id: str, tmp_path: Path) -> None:
    table = Table(env_id)
    on_threads = table.play(lambda env: gold_text(env, table.chat, "unlimited"), num=2)
    table.task = dataclasses.replace(table.task, seed=8)
    on_threads += table.play(lambda env: "17 is wrong")
    config = table.config.model_copy(
        update={"run_dir": tmp_path, "environments": make_config(environments={env_id: {"process": True}}).environments}
    )

    async def run() -> list[Rollout]:
        processes = EnvProcesses(config)
        played = []
        for one in on_threads:
            said = iter([tuple(turn.reply.ids.tolist()) for turn in one.turns])
            engine = _Repeats(said)
            player = Player(config, table.chat, engine, EnvRunner(1), 1.0, processes)  # pyright: ignore[reportArgumentType]
            played.append(await play(player, one.task, one.group_id, one.member, engine))  # pyright: ignore[reportArgumentType]
        processes.close()
        return played

    for here, there in zip(on_threads, asyncio.run(run()), strict=True):
        assert there.error == "" and len(here.turns) > 0
        assert [turn.prompt.ids.tolist() for turn in here.turns] == [turn.prompt.ids.tolist() for turn in there.turns]
        assert [turn.reply.ids.tolist() for turn in here.turns] == [turn.reply.ids.tolist() for turn in there.turns]
        plain = {"turns": (), "seconds": 0.0}
        assert dataclasses.replace(here, **plain) == dataclasses.replace(there, **plain)


class _Repeats:
    """An engine and its lane: replies with these tokens, one reply after the other."""

    def __init__(self, replies: Iterator[tuple[int, ...]]) -> None:
        self._replies = replies

    async def seated(self) -> None:
        pass

    async def sample(self, prompt_ids: Any, params: Any) -> Any:
        return SampledReply(make_reply(next(self._replies)), "stop")

    def close(self) -> None:
        pass
