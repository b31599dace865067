"""A learner that is started again: which engines it meets, and what the run says."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rl.cluster.actors import ActorDied
from rl.parts import LearnerDied, _wait_until_ready
from tests.fake_parts import lines, log_of, making


def test_engines_that_died_with_the_learner_are_replaced_also_if_that_is_noticed_late(tmp_path: Path) -> None:
    with making(tmp_path) as make:
        parts = make()
        calls = log_of(parts)
        learner: Any = parts.learner
        learner.describe = lambda: "float32"
        pool = SimpleNamespace(
            num_workers=1,
            record=lambda recording: None,
            wait_until_ready=lambda: calls.call("wait"),  # raises if an engine is dead
            drop_plays=lambda: calls.call("replace the dead"),
            token_texts=lambda: ["a"],
            load_weights=lambda source: calls.call("load"),
            wait_until_loaded=lambda: calls.call("loaded"),
        )
        served: Any = SimpleNamespace(pool=pool, teachers=parts.teachers, joined=SimpleNamespace(words="a cluster"))
        _wait_until_ready(parts, served, [])
        assert calls == ["wait"]
        calls.clear()
        parts.step = 3  # of a checkpoint: nothing is played by the weights that the engines have loaded
        _wait_until_ready(parts, served, [])
        assert calls == ["wait", "publish", "load", "loaded"]
        parts.step = 0
        calls.clear()
        death = LearnerDied("the learner died")
        death.__cause__ = ActorDied("OutOfMemoryError: killed\nand how much memory each process had")
        _wait_until_ready(parts, served, [death])
        assert calls == ["replace the dead", "publish", "load", "loaded"]
        (told,) = lines(parts, "note")
        assert told["text"] == "the learner died and was started again from step 0: OutOfMemoryError: killed"
