"""Which Ray cluster is joined, what is found before the supervised stage, and what is said when there is no place."""

import asyncio
import errno
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from ray._private import services

from rl import checks
from rl.checks import store_bytes
from rl.cluster import address as address_module
from rl.cluster import cluster as cluster_module
from rl.cluster import shared_memory, watch
from rl.cluster.actors import Deadline, RemoteError, start_actor
from rl.cluster.address import ClusterError, answers, check_local_start, cluster_address, num_local_gpus
from rl.cluster.cluster import check_cluster, cluster, in_own_sessions
from rl.cluster.placement import layout
from rl.cluster.places import num_cores
from rl.cluster.reserve import reserve
from rl.cluster.shared_memory import check_shared_memory, store_size
from rl.cluster.visible import mark_in, missing_here
from rl.cluster.watch import watched
from rl.config.cluster import RayConfig
from rl.stop import StopRequested, handled_signals, raise_if_requested
from rl.weights.transports.shared_memory import SharedMemory
from tests.makers import ARITHMETIC, make_config


@pytest.fixture
def listening() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def silent() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No cluster of this machine and no variable of this process is seen."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(address_module, "read_ray_address", lambda: None)


def test_what_is_reserved_is_the_learner_and_all_workers() -> None:
    config = make_config(rollout={"num_workers": 3, "cpus_per_worker": 0.5}, learner={"cpus": 2, "gpus": 1})
    assert config.reserved == (3.5, 1.0)


def test_a_port_that_somebody_listens_at_answers(listening: str, silent: str) -> None:
    assert answers(listening) and answers(f"ray://{listening}")
    assert not answers(silent) and not answers(f"ray://{silent}")
    assert answers("anyscale://a-cluster")  # of a kind that only Ray knows


@pytest.mark.parametrize("address", ["nonsense", "", "host:", ":6379x", "127.0.0.1:99999999", "ray://", "[::1]:x"])
def test_what_is_no_address_does_not_answer(address: str) -> None:
    assert not answers(address)


def test_without_a_cluster_one_is_started_here(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cluster_address("auto") is None
    assert cluster_address("local") is None
    monkeypatch.setattr(address_module, "read_ray_address", lambda: silent)  # left behind by a head that was killed
    assert cluster_address("auto") is None


def test_the_cluster_of_this_machine_is_joined_unless_a_local_one_is_asked_for(
    listening: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(address_module, "read_ray_address", lambda: listening)
    assert cluster_address("auto") == listening
    assert cluster_address("local") is None
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert cluster_address("auto") is None


@pytest.mark.parametrize("form", ["{}", "ray://{}", "auto", " auto ", ""])
def test_the_variable_is_honoured(form: str, listening: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address_module, "read_ray_address", lambda: listening)
    monkeypatch.setenv("RAY_ADDRESS", form.format(listening))
    assert cluster_address("auto") == (form if "{}" in form else "{}").format(listening)


@pytest.mark.parametrize("form", ["{}", "ray://{}", "auto", "nonsense"])
def test_a_cluster_that_is_named_and_does_not_answer_is_an_error(
    form: str, silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(address_module, "read_ray_address", lambda: silent)
    monkeypatch.setenv("RAY_ADDRESS", form.format(silent))
    with pytest.raises(ClusterError, match=r"RAY_ADDRESS: no Ray cluster answers at .*ray.address=local"):
        cluster_address("auto")
    if form != "auto":
        monkeypatch.delenv("RAY_ADDRESS")
        with pytest.raises(ClusterError, match=r"ray.address: no Ray cluster answers"):
            check_cluster(make_config(ray={"address": form.format(silent)}))


def test_a_folder_that_is_too_long_for_sockets_is_told_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 60)
    for variable in ("RAY_TMPDIR", "TMPDIR"):
        monkeypatch.setenv(variable, str(long))
        with pytest.raises(ClusterError, match=r"is too long: a socket in it would have a path of 1\d\d bytes"):
            check_cluster(make_config())
        monkeypatch.delenv(variable)
    check_local_start()


@pytest.mark.parametrize("place", ["/proc/x", "/dev/null"])
def test_a_folder_that_ray_cannot_write_is_told(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", place)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ClusterError, match="cannot be written; set RAY_TMPDIR"):
        check_local_start()


@pytest.mark.parametrize("section", ["learner", "rollout"])
def test_gpus_that_are_not_there_are_told_before_anything_starts(section: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(**{section: {"gpus" if section == "learner" else "gpus_per_worker": 1}})
    monkeypatch.setattr(cluster_module, "num_local_gpus", lambda: 0)
    with pytest.raises(ClusterError, match=r"with 1 CPUs and 1 GPUs.*cannot hold that \(this machine: 2 CPUs\)"):
        check_cluster(config)
    monkeypatch.setattr(cluster_module, "num_local_gpus", lambda: 1)
    check_cluster(config)


def test_gpus_that_this_process_may_not_see_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    manager = SimpleNamespace(
        get_current_node_num_accelerators=lambda: 4, get_current_process_visible_accelerator_ids=lambda: ["2"]
    )
    monkeypatch.setattr(address_module, "get_accelerator_manager_for_resource", lambda name: manager)
    assert num_local_gpus() == 1
    manager.get_current_process_visible_accelerator_ids = lambda: None
    assert num_local_gpus() == 4


def test_the_object_store_is_as_large_as_the_run_needs_unless_a_key_sets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert store_size(RayConfig(), 0) == store_size(RayConfig(), 128 * 2**20) == 128 * 2**20
    assert store_size(RayConfig(), 300 * 2**20) == 300 * 2**20
    assert store_size(RayConfig(object_store_mib=400), 300 * 2**20) == 400 * 2**20
    monkeypatch.setattr(shared_memory, "get_system_memory", lambda: 2**30)
    monkeypatch.setattr(shared_memory.shutil, "disk_usage", lambda path: SimpleNamespace(free=500 * 2**20))
    for asked, needed, words in (
        (200, 201, "ray.object_store_mib is 200, and published weights and samples need 201"),
        (None, 1025, r"store of 1,025 MiB.*does not fit into this machine's memory \(1,024 MiB\)"),
        (None, 501, "has 500 MiB free"),
    ):
        with pytest.raises(ClusterError, match=words):
            check_cluster(make_config(ray={"object_store_mib": asked}), needed * 2**20)
    check_cluster(make_config(), 500 * 2**20)


def test_the_store_holds_three_versions_an_adapter_s_base_and_a_step_s_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "published_room", lambda config, policy_path: 10_000_000)
    train = {"num_steps": 1, "num_prompts": 4, "group_size": 5}
    config = make_config(weights="object_store", train=train, policy={"path": tmp_path, "max_tokens": 1000})
    samples = 4 * 5 * 1000 * 26
    assert store_bytes(config, tmp_path) == round(1.1 * (samples + 10_000_000))
    assert store_bytes(config, None) == round(1.1 * samples)
    assert store_bytes(config.model_copy(update={"weights": SharedMemory()}), tmp_path) == round(1.1 * samples)
    monkeypatch.setattr(checks, "checkpoint_shapes", lambda policy_path: SimpleNamespace(route_bytes=138))
    replays = config.model_copy(update={"learner": config.learner.model_copy(update={"routing_replay": True})})
    assert store_bytes(replays, tmp_path) == round(1.1 * (4 * 5 * 1000 * (26 + 2 * 138) + 10_000_000))


def test_too_little_shared_memory_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory.shutil, "disk_usage", lambda path: SimpleNamespace(free=64 * 2**20))
    check_shared_memory(64 * 2**20)
    with pytest.raises(
        ClusterError, match=r"has 64 MiB free, and published weights and samples need 65 MiB; .*--shm-size"
    ):
        check_shared_memory(65 * 2**20)


def test_what_a_node_lacks_is_told_in_words(tmp_path: Path) -> None:
    assert missing_here([tmp_path], [ARITHMETIC]) == []
    folder, env = missing_here([tmp_path / "policy", tmp_path], [ARITHMETIC, "math/Arithmetik-v0"])
    assert folder == f"the folder {tmp_path / 'policy'}"
    assert "math/Arithmetik-v0" in env and ARITHMETIC in env


def test_a_folder_that_only_has_the_name_of_the_runs_folder_is_told(tmp_path: Path) -> None:
    with mark_in(tmp_path) as mark:
        assert missing_here([tmp_path], [], mark) == []
        mark.rename(tmp_path / "elsewhere")
        told = missing_here([tmp_path], [], mark)
        (tmp_path / "elsewhere").unlink()
    assert told == [f"the run's own {tmp_path} (it has another folder of that name)"]
    assert list(tmp_path.iterdir()) == []


def test_a_head_that_no_longer_answers_asks_the_run_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "INTERVAL_S", 0.02)
    server = socket.create_server(("127.0.0.1", 0))
    head = f"127.0.0.1:{server.getsockname()[1]}"
    with handled_signals(), watched(head):
        time.sleep(0.2)
        raise_if_requested()
        server.close()
        with pytest.raises(StopRequested, match=f"its head at {head} no longer answers") as stopped:
            for _ in range(500):
                time.sleep(0.02)
                raise_if_requested()
    assert stopped.value.exit_code == 1


@pytest.mark.parametrize(
    ("end", "told"),
    [("os._exit(1)", "gone\n"), ("os.kill(os.getpid(), 9)", "gone\n"), ("sys.exit('in words')", "in words\n")],
)
def test_a_process_that_can_say_nothing_more_has_last_words(end: str, told: str) -> None:
    code = f"import os, sys\nfrom rl.cluster.watch import last_words\nwith last_words('gone'):\n    {end}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0 and done.stderr == told


def test_signals_to_our_process_group_do_not_reach_ray_s_processes() -> None:
    command = [sys.executable, "-c", "input()"]
    with in_own_sessions():
        apart = services.start_ray_process(command, "a test", fate_share=True, pipe_stdin=True).process
    beside = services.start_ray_process(command, "a test", fate_share=True, pipe_stdin=True).process
    assert (os.getpgid(apart.pid), os.getsid(apart.pid)) == (apart.pid, apart.pid)
    assert os.getpgid(beside.pid) == os.getpgrp()
    for process in (apart, beside):
        process.communicate(b"\n")


class Waits:
    def pid(self) -> int:
        return os.getpid()


class Sleeps:
    async def sleep(self) -> None:
        await asyncio.sleep(600)

    async def pid(self) -> int:
        return os.getpid()

    async def fail(self) -> None:
        raise TwoArguments("this", "that")


class TwoArguments(ValueError):
    """Pickle makes it again from its one text, which fails."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")


@pytest.mark.slow
def test_a_cluster_says_what_it_has_and_that_others_use_it(tmp_path: Path) -> None:
    config = make_config(ray={"address": "local", "local_cpus": 3})
    with cluster(config) as joined:
        here = f"started Ray on this machine ({num_cores():g} cores)"
        assert joined.words == f"{here}: 1 node, 3 of Ray's 3 CPU slots free"
        first = start_actor(Waits, 1.0, 0.0, joined.places.engines[0])
        assert first.call(Waits.pid).wait(Deadline(240, "starting", "key")) > 0
        playing = start_actor(Sleeps, 0.0, 0.0, None)
        sleeping = [playing.call(Sleeps.sleep) for _ in range(1100)]  # Ray's own limit is 1,000
        assert playing.call(Sleeps.pid).wait(Deadline(240, "a sign of life", "key")) > 0
        assert not any(one.is_done() for one in sleeping[::100])
        with pytest.raises(RemoteError, match="this and that"):  # not `ActorDied`, after which it would be replaced
            playing.call(Sleeps.fail).wait(Deadline(240, "an error", "key"))
        with pytest.raises(ClusterError) as caught:
            deadline = Deadline(3, "starting the engines", "train.start_timeout_s")
            start_actor(Waits, 1.5, 0.0, None).call(Waits.pid).wait(deadline)
        with pytest.raises(ClusterError) as none:
            reserve(layout(config), 1.0)
    message = str(caught.value)
    assert message.startswith(
        "starting the engines took longer than 3 s; train.start_timeout_s sets the deadline. 1 of"
    )
    assert "the run's 3 actors have no place yet" in message and "1 of Ray's 3 CPU slots free" in message
    assert "no place was found within 1 s (train.start_timeout_s) for 1 learner rank with 1 CPUs and 1 engine" in str(
        none.value
    )
    assert "1 CPUs of 3 CPUs" in str(none.value)


def test_ray_s_own_errors_are_told_in_words(monkeypatch: pytest.MonkeyPatch, listening: str) -> None:
    def fail(**settings: object) -> None:
        raise OSError(errno.ENOENT, "no such thing\nand a traceback")

    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(ClusterError, match=r"Ray cannot be started here: FileNotFoundError: .*no such thing$"):
        cluster(make_config()).__enter__()
    with pytest.raises(
        ClusterError, match=f"something answers at '{listening}', and it cannot be joined .*no such thing; use"
    ):
        cluster(make_config(ray={"address": listening})).__enter__()
