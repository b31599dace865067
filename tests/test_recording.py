"""What a run records of its loop, which line of a replay differs first, and the steps that can be repeated."""

import json
from contextlib import closing
from pathlib import Path

import pytest

from envs.json_lines import read_lines
from rl.config.experiment import ExperimentConfig
from rl.config.judge import JudgeConfig
from rl.config.read import dump_config
from rl.data_types import Group
from rl.engine.record import tokens_hash
from rl.replay import NotRepeatableError, _config, check_repeatable
from rl.rollouts.course import RecordedDeath
from rl.runs.differences import Recorded, ReplayDiffers, engine_difference, token_difference
from rl.runs.folder import RunFolder, RunFolderError
from rl.runs.recording import NoRecordError, Recording, read_attempts
from rl.runs.saved_groups import SavedGroups, SavedGroupsEnd, SavedGroupsError, check_saved_groups
from rl.runs.saved_rollouts import write_rollouts
from rl.tasks.ledger import Ledger
from rl.weights.source import WeightSource
from tests.makers import group_of, make_config, make_group, make_rollout, make_task, make_turn, make_update

RECORDED = make_group([1.0, 0.0], ordinal=0)


def config_of(run_dir: Path) -> ExperimentConfig:
    return make_config(run_dir, train={"num_steps": 2, "num_prompts": 1, "group_size": 2, "max_staleness": 1})


def attempt(run: RunFolder, first_step: int, *steps: int) -> None:
    """Record an attempt that makes these steps."""
    recording = Recording(run)
    recording.begin(config_of(run.path), first_step, run.spool, is_again=False)
    for step in steps:
        make_step(recording, step, RECORDED)
    recording.close()


def make_step(recording: Recording, step: int, group: Group, loss: float = 0.1) -> None:
    recording.started([step - 1], [0])
    recording.collected(step, [group])
    recording.updated(step, make_update(step, loss=loss))
    recording.published(step, WeightSource(step, "", f"hash {step}"))


def save(run: RunFolder, step: int, *groups: Group) -> None:
    run.rollouts.mkdir(exist_ok=True)
    with run.rollouts_file(step, "train").open("w") as file:
        write_rollouts(file, step, "train", groups)


def replay_of(run: RunFolder) -> "closing[Recording]":
    """A recording that repeats the run's first attempt, closed at the end of the block."""
    return closing(Recording(RunFolder(run.path / "replay"), read_attempts(run)[0]))


def steps_of(run: RunFolder) -> list[tuple[int, int, str]]:
    return [(one.first_step, one.last_step, one.end) for one in read_attempts(run)]


def test_attempts_are_repeated_up_to_the_step_from_which_the_next_one_went_on(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    attempt(run, 0, 1, 2, 3)
    attempt(run, 2)
    attempt(run, 2, 3, 4)
    assert steps_of(run) == [(0, 2, ""), (2, 2, ""), (2, 4, "")]
    assert [one.is_empty for one in read_attempts(run)] == [False, True, False]


def test_an_attempt_whose_record_was_not_written_ends_what_can_be_repeated(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    attempt(run, 0, 1, 2)
    attempt(run, 2, 3)
    assert steps_of(run) == [(0, 2, ""), (2, 3, "")]
    attempt(run, 7, 8)
    assert steps_of(run) == [(0, 2, ""), (2, 3, "nothing is recorded of its last steps")]


def test_a_worker_dies_in_a_replay_in_the_wait_in_which_it_died_and_the_new_one_follows_a_file_of_its_own(
    tmp_path: Path,
) -> None:
    run = RunFolder(tmp_path)
    with closing(Recording(run)) as recording:
        recording.begin(config_of(tmp_path), 0, tmp_path / "spool", is_again=False)
        recording.check_alive(1, "0-4")
        recording.replaced(1, RuntimeError("killed"), "0-4", ["0-4", "0-5"])
        make_step(recording, 1, RECORDED)
    with replay_of(run) as recording:
        recording.begin(config_of(tmp_path), 0, tmp_path / "spool", is_again=False)
        lost_here = recording.engine_files(1)
        assert lost_here is not None and lost_here.ended_groups == {"0-0"}
        for worker, waiting_for in ((0, "0-4"), (1, "0-3"), (1, "")):
            recording.check_alive(worker, waiting_for)
        with pytest.raises(RecordedDeath, match="killed") as raised:
            recording.check_alive(1, "0-4")
        assert raised.value.lost == ("0-4", "0-5")
        recording.replaced(1, raised.value, "0-4", raised.value.lost)
        recording.check_alive(1, "0-4")
        files = [recording.engine_files(worker) for worker in (0, 1)]
        scripts = [one.script for one in files if one is not None]
        assert scripts == [run.record / "0001" / name for name in ("engine_0.jsonl", "engine_1_1.jsonl")]
        make_step(recording, 1, RECORDED)


def test_a_run_without_a_record_from_its_first_step_on_is_refused(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with pytest.raises(NoRecordError, match=r"asynchronous runs .* write one"):
        read_attempts(run)
    attempt(run, 2, 3)
    with pytest.raises(NoRecordError, match="from its first step on"):
        read_attempts(run)


def test_a_replay_writes_the_same_lines(tmp_path: Path) -> None:
    run, again = RunFolder(tmp_path), RunFolder(tmp_path / "replay")
    attempt(run, 0, 1, 2)
    with replay_of(run) as recording:
        recording.begin(config_of(tmp_path), 0, again.spool, is_again=False)
        assert recording.starts() == [0]
        assert not recording.evaluates("before", 0)
        make_step(recording, 1, RECORDED)
        make_step(recording, 2, RECORDED)
    before, now = (list(read_lines(one.record / "0001" / "loop.jsonl")) for one in (run, again))
    assert now == before and len(now) == 9


OTHER_REPLY = make_rollout(0.0, task=make_task(0), member=1, turns=(make_turn(reply_ids=(10, 13, 12)),))
LOSS = "update of step 1: loss was 0.1, is 0.5"
REWARD = "group 0-0, member 1: recorded reward 0.0, now 0.5"
TOKEN = "group 0-0, member 1, turn 0, token 1: recorded id 11, {0}, now id 13, {0}".format("logprob -0.75, version 0")


@pytest.mark.parametrize(
    ("group", "loss", "told"),
    [
        (RECORDED, 0.5, LOSS),
        (make_group([1.0, 0.5]), 0.1, REWARD),
        (group_of(RECORDED.rollouts[0], OTHER_REPLY), 0.1, TOKEN),
    ],
)
def test_what_differs_first_is_told_with_both_values(group: Group, loss: float, told: str, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    attempt(run, 0, 1)
    save(run, 1, RECORDED)
    with replay_of(run) as recording, pytest.raises(ReplayDiffers) as raised:
        recording.begin(config_of(tmp_path), 0, tmp_path / "spool", is_again=False)
        make_step(recording, 1, group, loss)
    assert str(raised.value) == told
    assert raised.value.exit_code == 4


def test_a_replay_does_not_replace_a_worker_and_tells_what_its_engine_could_not_follow(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    attempt(run, 0, 1)
    save(run, 1, RECORDED)
    with replay_of(run) as recording:
        files = recording.engine_files(1)
        assert files is not None and files.script == run.record / "0001" / "engine_1.jsonl"
        with pytest.raises(ReplayDiffers, match="a worker failed, or waited longer than its deadline: no answer"):
            recording.replaced(1, RuntimeError("no answer"), "", [])
        reply = RECORDED.rollouts[1].turns[0].reply
        hashed = tokens_hash(reply.ids, reply.columns["logprob"], reply.columns["version"])
        told = {"text": "the reply differs", "step": 7, "name": "0-0/1/1/0", "recorded": hashed}
        now = {"ids": [10, 11], "logprob": [-0.5, -0.75], "version": [0, 0]}
        files.difference.write_text(json.dumps({**told, **now}))
        with pytest.raises(ReplayDiffers) as raised:
            recording.replaced(1, RuntimeError(), "", [])
    token = "group 0-0, member 1, turn 0, token 2: recorded id 12, logprob -1.0, version 0, now the end of the reply"
    assert str(raised.value) == f"{token}; the reply ended in step 7 of the engine of worker 1"


def test_recorded_tokens_of_another_attempt_are_not_taken_for_those_of_this_one(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    save(run, 1, RECORDED)
    told = {"text": "the reply differs", "name": "0-0/1/1/0", "recorded": "another hash"}
    (tmp_path / "difference").write_text(json.dumps({**told, "ids": [1], "logprob": [0.0], "version": [0]}))
    text = engine_difference(Recorded(run, tmp_path, ()), 0, tmp_path / "difference", RuntimeError())
    assert text.endswith("the reply differs; RUN/rollouts does not have the recorded tokens")


def test_a_version_alone_makes_a_token_differ_and_equal_tokens_do_not() -> None:
    columns = {"logprob": [-0.5, -0.1], "version": [3, 3]}
    assert token_difference([7, 8], columns, [7, 8], columns) == ""
    told = token_difference([7, 8], columns, [7, 8], columns | {"version": [3, 4]})
    assert told == "token 1: recorded id 8, logprob -0.1, version 3, now id 8, logprob -0.1, version 4"


def test_a_replay_may_change_where_it_runs_and_not_what_it_computes(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    attempt(run, 0, 1)
    (one,) = read_attempts(run)
    assert _config(one, run.path, ["train.collect_timeout_s=5"]).run_dir == run.path / "replay"
    with pytest.raises(RunFolderError, match=r"so seed, train.num_steps cannot be changed"):
        _config(one, run.path, ["seed=5", "train.num_steps=7"])


def test_a_run_with_a_judge_or_without_the_record_of_an_engine_is_refused(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    with closing(Recording(run)) as recording:
        recording.begin(config_of(tmp_path), 0, tmp_path / "spool", is_again=False)
        recording.replaced(0, RuntimeError("killed"), "", [])
        make_step(recording, 1, RECORDED)
        recording.replaced(0, RuntimeError("killed"), "", [])  # its new engine played nothing that counts
    (one,) = read_attempts(run)
    judge = JudgeConfig(path=tmp_path)
    with pytest.raises(NotRepeatableError, match=r"record/0001/config.yaml has a judge, whose answers are not"):
        check_repeatable(one, config_of(tmp_path).model_copy(update={"judge": judge}))
    for name in ("engine_0.jsonl", "engine_0_1.jsonl"):
        with pytest.raises(NotRepeatableError, match=f"record/0001/{name} is missing"):
            check_repeatable(one, config_of(tmp_path))
        (one.folder / name).touch()
    check_repeatable(one, config_of(tmp_path))


def test_saved_groups_are_handed_over_step_by_step_and_tasks_without_any_count_as_masked(tmp_path: Path) -> None:
    run, ledger = RunFolder(tmp_path), Ledger()
    save(run, 1, make_group([1.0, 0.0], 0), make_group([0.0, 0.0], 1))
    save(run, 2, make_group([1.0, None], 3))
    saved = SavedGroups(run, ledger, step=0)
    for expected in ([0, 1], [3]):
        groups = saved.collect()
        assert [group.task.ordinal for group in groups] == expected
        assert [len(group.rollouts) for group in groups] == len(expected) * [2]
        for ordinal in expected:
            ledger.finish(ordinal, masked=False)
    assert ledger.state() == {"num_started": 4, "in_flight": [], "played": [], "masked": [2]}


def test_saved_groups_of_a_refused_update_are_used_up_and_the_run_goes_on_and_ends_with_words(tmp_path: Path) -> None:
    run, ledger = RunFolder(tmp_path), Ledger()
    for step in (1, 2, 3):
        save(run, step, make_group([1.0, 0.0], step - 1))
    saved = SavedGroups(run, ledger, step=0)
    for ordinal, is_refused in ((0, False), (1, True)):
        assert [group.task.ordinal for group in saved.collect()] == [ordinal]
        ledger.finish(ordinal, masked=is_refused)
    ledger = Ledger.from_state(ledger.state())  # as --resume does, after one step was trained
    saved = SavedGroups(run, ledger, step=1)
    assert [group.task.ordinal for group in saved.collect()] == [2]
    ledger.finish(2, masked=False)
    assert ledger.state() == {"num_started": 3, "in_flight": [], "played": [], "masked": [1]}
    with pytest.raises(SavedGroupsEnd, match=r"has no rollouts of step 4; each update that is refused"):
        saved.collect()


def test_a_task_that_a_file_holds_twice_is_trained_once(tmp_path: Path) -> None:
    run, ledger = RunFolder(tmp_path), Ledger()
    save(run, 1, make_group([1.0, 0.0], 0), make_group([1.0, 0.0], 1), make_group([1.0, 0.0], 0))
    assert [group.task.ordinal for group in SavedGroups(run, ledger, step=0).collect()] == [0, 1]


def test_saved_rollouts_must_reach_as_far_as_the_run(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    save(run, 1, RECORDED)
    with pytest.raises(SavedGroupsError, match=r"no rollouts of step 2, and train.num_steps is 2"):
        check_saved_groups(run, config_of(tmp_path / "other"))


def test_saved_rollouts_must_have_what_the_learner_reads(tmp_path: Path) -> None:
    run, played = RunFolder(tmp_path), config_of(tmp_path)
    for step in (1, 2):
        save(run, step, RECORDED)
    run.config_file.write_text(dump_config(played))
    check_saved_groups(run, played)
    replays = played.model_copy(update={"learner": played.learner.model_copy(update={"routing_replay": True})})
    with pytest.raises(
        SavedGroupsError, match=r"lack routed_experts, which this experiment's algorithms or learner read"
    ):
        check_saved_groups(run, replays)
