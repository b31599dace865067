"""`python -m rl plan` of experiments with teachers and a judge: where they are, what they hold, what they lack."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rl.config.errors import ConfigError
from rl.config.experiment import ExperimentConfig
from rl.plan.beside import shapes_beside
from rl.plan.cards import CARDS
from rl.plan.engine import engine_memory
from rl.plan.fit import Plan, make_plan
from rl.plan.memory import PROCESS_BYTES
from rl.plan.nodes import Nodes, lay_out
from rl.plan.show import show_plan
from tests.families import write_policy
from tests.published_models import PUBLISHED, long_config, shapes_of

H100 = CARDS["h100-80gb"]
SMALL, LARGE = shapes_of(PUBLISHED["Qwen3-0.6B"]()), shapes_of(PUBLISHED["Qwen3-8B"]())
TAUGHT: dict[str, Any] = {
    "teachers": {"maths": {"path": "maths", "num_engines": 2}},
    "loss": {"algorithm": "mopd", "teacher": "maths"},
    "judge": {"path": "judge", "max_tokens": 1024},
}


def planned(config: ExperimentConfig, *arguments: Any, teacher: Any = SMALL, judge: Any = LARGE) -> Plan:
    beside = {"teacher maths": (teacher, "bfloat16"), "judge": (judge, "bfloat16")}
    return make_plan(SMALL, config, *arguments, shapes_beside=beside)


@pytest.mark.parametrize(
    ("each", "learner", "expected"),
    [
        (
            1,
            1,
            {
                "the learner's card": ["learner"],
                "a card of engines": ["engine"],
                "a card of the teacher maths": ["teacher maths"],
                "a card of the judge": ["judge"],
            },
        ),
        # Two of the four engines fit beside the learner; on a card of engines, four do, of which two are left.
        (0.25, 0.5, {"the learner's card": 3, "a card of engines": 2}),
    ],
)
def test_each_kind_has_a_card_or_a_share_of_one(each: float, learner: float, expected: dict[str, Any]) -> None:
    config = long_config(learner={"gpus": learner}, rollout={"gpus_per_worker": each}, **TAUGHT)
    cards = {one.name: [name for name, _ in one.tenants] for one in planned(config, H100, None).places if one.is_gpu}
    assert {name: names if each == 1 else len(names) for name, names in cards.items()} == expected


def test_a_host_holds_all_of_them_and_the_judges_endpoint() -> None:
    config = long_config(**TAUGHT)
    plain = make_plan(SMALL, long_config(), None, 1e15)
    plan = planned(config, None, 1e15)
    teacher, judge = plan.beside
    assert (teacher.name, teacher.num, judge.name, judge.num) == ("teacher maths", 2, "judge", 1)
    (before,), (after,) = plain.places, plan.places
    more = 2 * teacher.memory.total_bytes + judge.memory.total_bytes + PROCESS_BYTES
    assert after.used - before.used == pytest.approx(more)
    assert plan.fits and "the time of a step is without teacher maths and judge" in list(plan.remarks())


def test_a_judge_has_its_own_length_and_a_teacher_the_logits_of_a_chunk() -> None:
    config = long_config(**TAUGHT)
    teacher, judge = (one.memory for one in planned(config, None, 1e15, judge=SMALL).beside)
    own = engine_memory(SMALL, config, None)
    assert own.sequence_bytes == 2 * judge.sequence_bytes  # of 2048 tokens and 1024, both whole pages
    step = {part.name: part.num_bytes for part in teacher.parts}["one step"]
    assert step >= 2048 * SMALL.vocab_size * 4 * 3
    assert not {"buffers"} & {part.name for part in (*teacher.parts, *judge.parts)}


def test_a_judge_without_room_for_a_conversation_is_told_its_own_keys() -> None:
    judge = {"path": "judge", "max_tokens": 1024, "kv_cache_gib": 0.05}
    ((wrong, ways),) = planned(long_config(**{**TAUGHT, "judge": judge}), None, 1e15, judge=SMALL).problems()
    assert wrong.startswith("the cache of the judge holds no sequence of judge.max_tokens: ")
    assert ways[0].startswith("judge.kv_cache_gib=0.1") and ways[1].startswith("judge.max_tokens, to 4")


def test_nodes_have_places_for_them() -> None:
    config = long_config(learner={"gpus": 1}, rollout={"gpus_per_worker": 1}, **TAUGHT)
    (node,) = lay_out(config, 8)
    assert node == {"learner": 1, "engine": 1, "teacher maths": 2, "judge": 1}
    assert any("need 2 nodes" in wrong for wrong, _ in planned(config, H100, None, Nodes(1, 4)).problems())


def test_their_checkpoints_are_read_and_shown(tmp_path: Path) -> None:
    path = write_policy("qwen3", tmp_path / "policy")
    tree = {**TAUGHT, "teachers": {"maths": {"path": path}}, "judge": {"path": path}}
    config = long_config(**tree)
    config = config.model_copy(update={"policy": config.policy.model_copy(update={"path": path})})
    show_plan(config, "", Console(file=(out := io.StringIO()), width=160))
    text = out.getvalue()
    assert "Memory of the teacher maths" in text and "Memory of the judge" in text
    assert "teacher maths, judge" in text.replace("\n", " ")
    lost = config.model_copy(update={"teachers": {"maths": replace_path(config, tmp_path / "none")}})
    with pytest.raises(ConfigError, match=r"teachers\.maths\.path: .*none"):
        shapes_beside(lost)


def replace_path(config: ExperimentConfig, path: Path) -> Any:
    return config.teachers["maths"].model_copy(update={"path": path})
