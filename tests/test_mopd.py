"""Distillation from teachers: the loss by hand, how rows are dealt to engines, and what is refused before a start."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from rl.algorithms.corrections import NonFiniteError
from rl.algorithms.mopd import Mopd
from rl.chat.formats.nemotron import NemotronFormat
from rl.cluster.actors import ActorDied
from rl.cluster.address import ClusterError
from rl.cluster.placement import layout
from rl.config.errors import ConfigError
from rl.config.policy import PolicyConfig, TinyHybrid
from rl.data_types import Sample
from rl.engine.protocol import EngineError
from rl.policies import build_policy
from rl.policy_checks import check_teachers
from rl.rollouts.teachers import TeacherPool, TeacherWorker
from rl.tokens import TEACHER, Tokens
from tests.loss_cases import MATH, STORE, make_batch, run
from tests.makers import make_config, make_group
from tests.test_train import START_TIMEOUT_S
from tests.trained import steps_of, trained

TEACHERS: dict[str, Any] = {"sums": {"path": "a", "num_engines": 2}, "shop": {"path": "b"}}
ENVIRONMENTS: dict[str, Any] = {
    MATH: {"loss": {"algorithm": "mopd", "teacher": "sums"}},
    STORE: {"loss": {"algorithm": "mopd", "teacher": "shop"}},
    "math/Countdown-v0": {},
}


def with_teacher(engine: Any, teacher: Any):
    batch = make_batch(engine, [0.0] * len(engine))
    return replace(batch, columns={**batch.columns, TEACHER: torch.tensor(teacher, dtype=torch.float32)})


def test_the_gradient_of_a_token_is_how_much_more_probable_the_teacher_thinks_it():
    """Tokens that the engine and the learner agree on; the loss is divided by the two tokens."""
    batch = with_teacher([[0.0, -1.0, -2.0]], [[-9.0, -0.5, -2.75]])
    loss, gradient, measures = run([[0.0, -1.0, -2.0]], batch, Mopd(teacher="one"))
    assert loss == pytest.approx(-(0.5 - 0.75) / 2)
    assert gradient.tolist() == [[0.0, pytest.approx(-0.25), pytest.approx(0.375)]]
    assert (measures["teacher_kl"].total / measures["teacher_kl"].weight).item() == pytest.approx((-0.5 + 0.75) / 2)


def test_importance_weights_outside_the_bounds_leave_the_token_out():
    """The engine's logprobs are those of an older policy: weights of e^0.5 = 1.649 and of e^2 = 7.39, above 5."""
    batch = with_teacher([[0.0, -1.5, -4.0]], [[0.0, 0.0, 0.0]])
    loss, gradient, measures = run([[0.0, -1.0, -2.0]], batch, Mopd(teacher="one", sequence_mismatch_max=100.0))
    assert loss == pytest.approx(-np.exp(0.5) * 1.0 / 2)
    assert gradient[0, 2] == 0.0
    assert measures["truncated_weight_fraction"].total.item() == 1.0


def test_advantages_of_tokens_are_clamped():
    batch = with_teacher([[0.0, -1.0]], [[0.0, -101.0]])
    assert run([[0.0, -1.0]], batch, Mopd(teacher="one"))[0] == pytest.approx(20.0)
    assert run([[0.0, -1.0]], batch, Mopd(teacher="one", advantage_max=None))[0] == pytest.approx(100.0)


def test_logprobs_of_a_teacher_that_are_no_numbers_are_refused():
    with pytest.raises(NonFiniteError, match="teacher"):
        run([[0.0, -1.0]], with_teacher([[0.0, -1.0]], [[0.0, float("nan")]]), Mopd(teacher="one"))


def test_rewards_have_no_part_and_rollouts_that_do_not_count_no_row():
    assert Mopd(teacher="one").advantages([make_group([1.0, None, 0.0])]) == [(0.0, None, 0.0)]
    assert Mopd(teacher="one").needs_every_row


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"teachers": {}}, "loss.teacher names 'shop', but `teachers` has none: add it there"),
        ({"teachers": {**TEACHERS, "code": {"path": "c"}}}, "teachers.code is used by no environment"),
        ({"rollout": {"temperature": 0.7}}, "rollout.temperature is 0.7: set it to 1"),
        ({"ray": {"placement": "colocated"}, "learner": {"num_ranks": 1}}, "no places for the engines of `teachers`"),
    ],
)
def test_what_cannot_be_distilled_is_refused(changes: dict[str, Any], told: str):
    with pytest.raises(ValueError, match=told):
        make_config(**{"environments": ENVIRONMENTS, "teachers": TEACHERS, **changes})


@pytest.mark.parametrize("key", ["overlong_filtering", "malformed_advantage"])
def test_edits_of_a_rollouts_advantage_are_refused(key: str):
    with pytest.raises(ValueError, match=f"{key} edits advantages of rollouts"):
        Mopd.model_validate({"algorithm": "mopd", "teacher": "one", key: 1})


def test_shaping_changes_what_is_not_read():
    environments = {**ENVIRONMENTS, MATH: {**ENVIRONMENTS[MATH], "shaping": ["length"]}}
    with pytest.raises(ValueError, match="shaping changes rewards, which distillation from a teacher does not read"):
        make_config(environments=environments, teachers=TEACHERS)


def test_dynamic_sampling_would_leave_out_groups_that_teach():
    distilled = {MATH: ENVIRONMENTS[MATH], "math/Countdown-v0": {}}
    with pytest.raises(ValueError, match="distillation reads no rewards"):
        make_config(
            environments=distilled,
            teachers={"sums": {"path": "a"}},
            train={"num_steps": 1, "max_sampling_rounds": 2},
        )


def test_engines_of_teachers_get_places_behind_those_of_workers():
    config = make_config(
        environments=ENVIRONMENTS, teachers=TEACHERS, rollout={"num_workers": 2}, weights="object_store"
    )
    asked = layout(config)
    assert config.reserved == (6.0, 0.0)
    assert asked.engines == ((1, 0), (1, 1)) and asked.teachers == ((1, 2), (1, 3), (1, 4))
    assert "of which 3 of teachers" in asked.words


class FakePending:
    def __init__(self, value: Any) -> None:
        self.value = value

    def wait(self, deadline: Any) -> Any:
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


class FakeTeacher:
    """Says for each token half of its id, or less that; `deaths` are the errors of the first calls."""

    def __init__(self, path: Path, deaths: list[Exception]) -> None:
        self.path, self.deaths, self.rows, self.is_stopped, self.is_gone = path, deaths, 0, False, False

    def call(self, method: Any, *args: Any) -> FakePending:
        if self.is_gone:
            return FakePending(ActorDied("its node is lost"))
        if method is not TeacherWorker.score:
            return FakePending(None)
        if self.deaths:
            return FakePending(self.deaths.pop(0))
        self.rows += len(args[0])
        return FakePending([np.asarray(row, np.float32) * (0.5 if str(self.path) == "a" else -0.5) for row in args[0]])

    def stop(self, *_: Any, **__: Any) -> None:
        self.is_stopped = True


def pool_of(*deaths: Exception) -> tuple[TeacherPool, list[FakeTeacher]]:
    made: list[FakeTeacher] = []
    left = list(deaths)

    def start(path: Path, place: Any) -> Any:
        made.append(FakeTeacher(path, left))
        return made[-1]

    config = make_config(environments=ENVIRONMENTS, teachers=TEACHERS, rollout={"num_retries": 1})
    return TeacherPool(config, cast(Any, ("x", "y", "z")), start), made


def row(env_id: str, ids: list[int]) -> Sample:
    columns = {"logprob": [0.0] * len(ids), "version": [0] * len(ids)}
    return Sample(env_id, Tokens.make(ids, [False, *[True] * (len(ids) - 1)], columns), 0.5)


def test_each_row_is_scored_by_its_environments_teacher():
    pool, made = pool_of()
    samples = [row(MATH, [1, 2]), row(STORE, [3]), row("math/Countdown-v0", [4]), row(MATH, [5]), row(MATH, [6, 7, 8])]
    scored = pool.scored(samples)
    columns = [one.tokens.columns.get(TEACHER) for one in scored]
    assert [None if one is None else one.tolist() for one in columns] == [
        *([0.5, 1.0], [-1.5], None, [2.5], [3.0, 3.5, 4.0])
    ]
    assert [one.rows for one in made] == [2, 1, 1]
    assert [(one.env_id, one.advantage, one.tokens.ids.tolist()) for one in scored] == [
        (one.env_id, one.advantage, one.tokens.ids.tolist()) for one in samples
    ]


@pytest.mark.parametrize("error", [ActorDied("gone"), EngineError("out of memory")])
def test_an_engine_that_fails_is_replaced_and_scores_again_but_not_for_ever(error: Exception):
    pool, made = pool_of(error)
    assert pool.scored([row(MATH, [1, 2])])[0].tokens.columns[TEACHER].tolist() == [0.5, 1.0]
    assert len(made) == 4 and made[0].is_stopped
    assert [str(error) in note for note in pool.notes()] == [True] and pool.notes() == ()
    pool, _ = pool_of(error, error)
    with pytest.raises(ClusterError, match=f"an engine of teacher sums failed: {error}"):
        pool.scored([row(MATH, [1, 2])])


def test_engines_that_died_with_the_learner_are_replaced():
    pool, made = pool_of()
    made[1].is_gone = True
    pool.revive()
    assert len(made) == 4 and made[1].is_stopped and not made[0].is_stopped
    assert len(pool.scored([row(MATH, [1, 2]), row(MATH, [3])])) == 2


def test_a_teacher_that_cannot_be_replaced_ends_the_run_in_words():
    pool, made = pool_of(ActorDied("gone"))
    start = pool._start

    def gone(path: Path, place: Any) -> Any:
        teacher: Any = start(path, place)
        teacher.is_gone = True
        return teacher

    pool._start = gone
    with pytest.raises(ClusterError, match="an engine of teacher sums could not be replaced: its node is lost"):
        pool.scored([row(MATH, [1, 2])])
    assert len(made) == 5  # twice


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny hybrids; the first two have the same tokenizer."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("student", "teacher", "stranger")}
    texts = {"stranger": "<|im_start|>user\nWhich words are these?<|im_end|>\n"}
    for number, (name, folder) in enumerate(folders.items()):
        text = texts.get(name, "<|im_start|>user\n12+30=?<|im_end|>\n")
        build_policy(TinyHybrid(), [text] * 200, folder, number, NemotronFormat())
    return folders


def test_a_teacher_with_another_tokenizer_is_refused(policies: dict[str, Path], tmp_path: Path):
    def config(teacher: Path) -> Any:
        environments = {MATH: {"loss": {"algorithm": "mopd", "teacher": "one"}}}
        return make_config(environments=environments, teachers={"one": {"path": teacher}})

    check_teachers(policies["student"], config(policies["teacher"]))
    with pytest.raises(ConfigError, match=r"teachers.one.path.*has another tokenizer"):
        check_teachers(policies["student"], config(policies["stranger"]))
    for policy in (policies["student"], None):  # which may be still to be built
        with pytest.raises(ConfigError, match=r"teachers.one.path"):
            check_teachers(policy, config(tmp_path / "nothing"))
    check_teachers(None, config(policies["stranger"]))
    longer = config(policies["teacher"]).model_copy(update={"policy": PolicyConfig(path=Path("x"), max_tokens=9999)})
    with pytest.raises(ConfigError, match=r"a context of 8192 tokens, less than policy.max_tokens \(9999\)"):
        check_teachers(None, longer)


YAML = """
run_dir: {run_dir}
seed: 3
policy: {{path: {student}}}
teachers:
  sums: {{path: {teacher}}}
  shop: {{path: {student}}}
environments:
  math/Arithmetic-v0: {{loss: {{algorithm: mopd, teacher: sums}}}}
  tools/Store-v0: {{loss: {{algorithm: mopd, teacher: shop}}}}
train: {{num_steps: 3, num_prompts: 3, group_size: 2, max_staleness: {max_staleness}}}
learner: {{learning_rate: 1.0e-3}}
evaluation: {{num_tasks: 2}}
rollout: {{max_in_flight: 16, kv_cache_gib: 0.1, max_reply_tokens: 24}}
ray: {{address: local}}
"""


@pytest.mark.slow
@pytest.mark.parametrize("max_staleness", [0, 1])
def test_a_run_learns_from_two_teachers(policies: dict[str, Path], tmp_path: Path, max_staleness: int) -> None:
    steps = steps_of(trained(YAML.format(run_dir=tmp_path / "run", max_staleness=max_staleness, **policies), tmp_path))
    assert [line["step"] for line in steps] == [1, 2, 3]
    assert all(line["seconds/score"] > 0 and np.isfinite(line["update/teacher_kl"]) for line in steps)


@pytest.mark.slow
def test_the_doctor_does_a_step_with_teachers(policies: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text(YAML.format(run_dir=tmp_path / "run", max_staleness=0, **policies))
    command = [sys.executable, "-m", "rl", "doctor", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * START_TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
