import socket

import pytest

from rl.cluster import cluster as cluster_module
from rl.cluster.cluster import _answers, _running_cluster, reserved
from tests.conftest import make_config


def test_what_is_reserved_is_the_learner_and_all_workers() -> None:
    config = make_config(rollout={"num_workers": 3, "cpus_per_worker": 0.5}, learner={"cpus": 2, "gpus": 1})
    assert reserved(config) == (3.5, 1.0)


def test_a_port_that_nobody_listens_at_does_not_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert _answers(address)
    assert not _answers(address)
    assert not _answers("nonsense")


def test_the_address_that_a_killed_cluster_left_behind_is_not_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cluster_module, "read_ray_address", lambda: address)
    assert _running_cluster(make_config()) is False
