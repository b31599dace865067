"""The check finds what is wrong: one bad environment a clause, beside one that keeps the contract."""

import inspect

import pytest
from rich.console import Console

from envs.check import NUM_CLAUSES, check_environment, subject
from envs.commands.check import print_checks
from envs.session import Deadlines
from tests.unsound_envs import (
    CloseOnce,
    DrawsFromElsewhere,
    EmptyOpening,
    ForgetsAMember,
    Fragile,
    GoldEarnsMoreOrLess,
    GoldIsWrong,
    HashesText,
    HiddenFromElsewhere,
    HiddenWithoutSplit,
    HiddenWord,
    Leaks,
    Leaves,
    MissesAKey,
    NeverEnds,
    NoSplit,
    NotPicklable,
    NotRepeatable,
    OneTask,
    OpensForThePolicy,
    PartsDoNotAddUp,
    PaysAndTakes,
    PaysAnEcho,
    PaysCanaries,
    PaysSilence,
    PaysTooMuch,
    RememberedInTheClass,
    SharesState,
    SpeaksForThePolicy,
    TakesAnyOption,
    ToolThatIsNone,
    Undescribed,
)


def broken_by(env: type) -> set[str]:
    return {
        result.name
        for result in check_environment(f"tests.unsound_envs:{env.__name__}", num_seeds=6)
        if result.status == "failed"
    }


def test_a_sound_environment_passes_and_every_check_says_what_it_means_and_how_to_mend_it() -> None:
    results = check_environment("tests.unsound_envs:Sound", num_seeds=6)
    assert len(results) == NUM_CLAUSES >= 30
    assert [result.detail for result in results if result.status == "failed"] == []
    assert all(result.meaning and result.remedy for result in results)
    assert {result.detail for result in results if result.status == "skipped"} == {
        "there are no tools",
        "it does not score groups",
    }


def test_only_the_total_must_lie_in_the_range_as_in_training() -> None:
    assert broken_by(PaysAndTakes) == set()


@pytest.mark.slow
def test_a_task_that_the_prompt_does_not_tell_is_known_by_its_key() -> None:
    assert broken_by(HiddenWord) == set()
    assert "one seed is one task" in broken_by(HiddenFromElsewhere)
    assert "splits share no task" in broken_by(HiddenWithoutSplit)


def test_a_wrong_attribute_is_named() -> None:
    opened, *others = check_environment("tests.unsound_envs:TurnsAreNone", num_seeds=1)
    assert opened.status == "failed"
    assert "max_turns must be a whole number of at least 1, got None" in opened.detail
    assert {result.status for result in others} == {"skipped"}


@pytest.mark.slow
def test_what_breaks_the_contract_or_cannot_be_written_is_told_in_words() -> None:
    results = check_environment("tests.unsound_envs:AnswersInLists", num_seeds=1)
    (failed,) = (result for result in results if result.status == "failed")
    assert failed.name == "results have the right form"
    assert failed.detail.startswith("messages must be a tuple of envs.messages.Message, got []")
    results = check_environment("tests.unsound_envs:RaisesHalfACharacter", num_seeds=1)
    assert any(result.detail.startswith("ValueError: \ufffd (") for result in results)


@pytest.mark.slow
def test_an_environment_that_hangs_is_not_waited_for_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "DEADLINES", Deadlines(30.0, 0.1))
    results = check_environment("tests.unsound_envs:HangsAtStep", num_seeds=1)
    assert sum(result.detail == "step took longer than 0.1 s" for result in results) == 1
    met = [result for result in results if result.detail == "because this failed: calls end before the deadline"]
    assert len(met) == subject.MAX_TIMEOUTS
    assert any("calls missed their deadline" in result.detail for result in results)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env", "name"),
    [
        (Undescribed, "is described"),
        (TakesAnyOption, "an unknown option is refused"),
        (EmptyOpening, "can be made and opened"),
        (OpensForThePolicy, "an opening is a conversation that waits for a reply"),
        (SpeaksForThePolicy, "the environment never speaks for the policy"),
        (NotPicklable, "a pickled copy plays on"),
        (DrawsFromElsewhere, "one seed is one task"),
        (HashesText, "another process draws the same task"),
        (OneTask, "seeds give different tasks"),
        (NoSplit, "splits share no task"),
        (Leaks, "prompts do not hold the answer"),
        (SharesState, "members of a group share no state"),
        (RememberedInTheClass, "members of a group share no state"),
        (GoldEarnsMoreOrLess, "the same replies earn the same"),
        (PaysTooMuch, "rewards stay in the declared range"),
        (ForgetsAMember, "a group is scored member by member"),
        (ToolThatIsNone, "tools have valid schemas"),
        (GoldIsWrong, "gold replies earn the highest reward"),
        (PaysSilence, "empty replies earn nothing"),
        (PaysAnEcho, "an echo of the prompt earns nothing"),
        (PaysCanaries, "canary texts earn nothing"),
        (PartsDoNotAddUp, "rewards are finite and parts add up"),
        (NotRepeatable, "the same replies earn the same"),
        (Fragile, "any text can be scored"),
        (NeverEnds, "episodes end in time"),
        (Leaves, "nothing is left behind"),
        (CloseOnce, "close may be called twice"),
    ],
)
def test_each_clause_finds_the_environment_that_breaks_it(env: type, name: str) -> None:
    assert name in broken_by(env)


@pytest.mark.slow
def test_tools_and_gold_are_checked_where_there_are_some() -> None:
    results = check_environment("tools/Store-v0", num_seeds=3)
    assert [result.name for result in results if result.status != "passed"] == ["a group is scored member by member"]


def test_an_environment_that_cannot_be_made_fails_with_the_reason() -> None:
    opened, *others = check_environment("tests.unsound_envs:Nowhere", num_seeds=1)
    assert opened.status == "failed" and "Nowhere" in opened.detail
    assert {(result.status, result.detail) for result in others} == {("skipped", "it cannot be opened")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env", "name", "detail", "remedy"),
    [
        (MissesAKey, "its code raises nothing", "KeyError: 'answer' (", "fix the named line"),
        (PaysTooMuch, "rewards stay in the declared range", "reward 10.0 is outside of its declared range", "declare"),
    ],
)
def test_a_fault_that_many_checks_meet_is_one_failure_with_its_own_name_line_and_remedy(
    env: type, name: str, detail: str, remedy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not print_checks(Console(width=200), f"tests.unsound_envs:{env.__name__}", {}, 2, None)
    told = capsys.readouterr().out
    assert "34 checks, 1 failed" in told
    assert f"failed  {name}\n        {detail}" in told
    assert f"tests/unsound_envs.py:{line_of(env)}" in told and f"To fix: {remedy}" in told
    assert told.count(detail) == 1 and f": because this failed: {name} (" in told


def line_of(env: type) -> int:
    """The line of `step`, or for one that raises the line below."""
    first = inspect.unwrap(env.__dict__["step"]).__code__.co_firstlineno
    return first + 1 if env is MissesAKey else first


@pytest.mark.slow
def test_an_error_that_only_one_check_provokes_is_its_own_finding() -> None:
    failed = {
        result.name: result
        for result in check_environment("tests.unsound_envs:Fragile", num_seeds=2)
        if result.status == "failed"
    }
    assert failed.keys() == {"any text can be scored"}
    assert "expect any text" in failed["any text can be scored"].remedy
    assert "tests/unsound_envs.py:" in failed["any text can be scored"].detail
