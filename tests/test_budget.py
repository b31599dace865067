"""The rule that ends reasoning by its budget, by hand and against random replies; how it is told, marked and masked."""

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.messages import Message, Reply
from rl.chat.budget import ThinkingLimit, violation
from rl.chat.format import ChatError
from rl.config.environments import BudgetConfig
from rl.config.experiment import ExperimentConfig
from rl.data_types import Turn
from rl.learner.samples import rollout_samples
from rl.tasks.seeds import draw_budget
from rl.tasks.stream import TaskStream
from rl.tokens import Tokens
from tests.makers import make_config, make_reply, make_rollout
from tests.test_chat import CHAT

LINE, END, STOP = 10, 2, 3
LIMIT = ThinkingLimit(num_tokens=4, grace_tokens=3, closing_ids=(LINE, END), end_id=END, line_end_ids=frozenset({LINE}))


@pytest.mark.parametrize(
    ("reply_ids", "start"),
    [
        ((5, 5, 5, END, 7, STOP), None),  # closed in time
        ((5, 5, 5, 5, END, 7), None),  # closed within the grace
        ((5, 5, 5, LINE, LINE, END, 7), 4),  # a line ends with the budget
        ((5, LINE, 5, 5, 5, LINE, LINE, END), 6),  # the next line end after it
        ((5, 5, 5, 5, 5, 5, 5, LINE, END, 9), 7),  # no line end: budget and grace
        ((5, 5, 5, 5, 5, 5, 5), 7),  # forced next
        ((5, 5, 5, 5, 5, 5), None),  # not yet
        ((), None),
        ((END, 5, 5, 5, 5, 5, 5, 5, 5), None),  # what follows the reasoning has no budget
    ],
)
def test_where_forcing_begins(reply_ids: tuple[int, ...], start: int | None) -> None:
    assert LIMIT.forced_start(reply_ids) == start
    mask = LIMIT.forced_mask(reply_ids)
    assert len(mask) == len(reply_ids)
    assert [place for place, forced in enumerate(mask) if forced] == (
        [] if start is None else [place for place in (start, start + 1) if place < len(reply_ids)]
    )


def test_gold_reasoning_is_cut_and_its_answer_kept() -> None:
    assert LIMIT.cut((5, 6, 5, 6, 5, 6, 5, 6, 5, END, 8, STOP)) == (5, 6, 5, 6, 5, 6, 5, LINE, END, 8, STOP)
    assert LIMIT.cut((5, 6, 5, LINE, 5, 6, END, 8, STOP)) == (5, 6, 5, LINE, LINE, END, 8, STOP)
    assert LIMIT.cut((5, 6, END, 8, STOP)) == (5, 6, END, 8, STOP)


def reply(ids: Sequence[int], forced: Sequence[int] = ()) -> Tokens:
    return make_reply(ids, forced=forced)


def test_an_engine_that_does_not_obey_is_found_out() -> None:
    assert violation(reply((5, 5, 5, 5, 5, 5, 5, LINE, END, 9), (7, 8)), LIMIT) == ""
    assert violation(reply((5, 5, 5, END, 9)), LIMIT) == ""
    assert "went on after 7 tokens" in violation(reply((5, 5, 5, 5, 5, 5, 5, 6, END), (7, 8)), LIMIT)
    assert "marked" in violation(reply((5, 5, 5, 5, 5, 5, 5, LINE, END, 9)), LIMIT)
    assert "marked" in violation(reply((5, 5, 5, END, 9), (3,)), LIMIT)
    assert "without a budget" in violation(reply((5, 5), (1,)), None)


class Policy:
    """Samples anything, as an engine without weights would; only the processor decides what is possible."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def sample(self, logits: torch.Tensor) -> list[int]:
        probabilities = logits.softmax(dim=-1)
        return [self._random.choices(range(len(row)), row.tolist())[0] for row in probabilities]


def play(limits: list[ThinkingLimit | None], seed: int, num_steps: int) -> list[list[int]]:
    """Replies of all rows together, each under its own limit; rows end on STOP and move places as they do in vLLM."""
    from vllm import SamplingParams
    from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality

    from rl.engine.budget_processor import ThinkingBudget, as_argument

    processor, policy = ThinkingBudget(None, torch.device("cpu"), False), Policy(seed)
    replies: list[list[int]] = [[] for _ in limits]
    rows = list(range(len(limits)))
    added = [
        (row, SamplingParams(extra_args=as_argument(limit) if limit else None), None, replies[row])
        for row, limit in enumerate(limits)
    ]
    processor.update_state(BatchUpdate(len(rows), [], added, []))
    for _ in range(num_steps):
        logits = torch.zeros(len(rows), 12)
        untouched = logits.clone()
        changed = processor.apply(logits)
        for row, number in enumerate(rows):
            limit = limits[number]
            start = limit.forced_start(replies[number]) if limit else None
            if start is None or len(replies[number]) >= start + len(LIMIT.closing_ids):
                assert torch.equal(changed[row], untouched[row])  # unforced tokens keep their distribution
        for row, token in enumerate(policy.sample(changed)):
            replies[rows[row]].append(token)
        ended = [row for row in range(len(rows)) if replies[rows[row]][-1] == STOP]
        if ended:
            gone, last = ended[0], len(rows) - 1
            moved = [(last, gone, MoveDirectionality.UNIDIRECTIONAL)] if gone != last else []
            rows[gone] = rows[last]
            rows.pop()
            processor.update_state(BatchUpdate(len(rows), [gone], [], moved))
        else:
            processor.update_state(None)
        if not rows:
            break
    return replies


@pytest.mark.slow
@settings(max_examples=40)
@given(st.integers(0, 10**6), st.lists(st.tuples(st.integers(1, 12), st.integers(0, 6)), min_size=1, max_size=6))
def test_random_replies_obey_to_the_token(seed: int, budgets: list[tuple[int, int]]) -> None:
    limits: list[ThinkingLimit | None] = [
        replace(LIMIT, num_tokens=budget, grace_tokens=grace) for budget, grace in budgets
    ]
    for reply_ids, limit in zip(play([*limits, None], seed, 40), limits, strict=False):
        assert limit is not None
        mask = limit.forced_mask(reply_ids)
        assert violation(reply(reply_ids, [place for place, forced in enumerate(mask) if forced]), limit) == ""
        reasoning = reply_ids.index(END) if END in reply_ids else len(reply_ids)
        sampled = reasoning - sum(mask[:reasoning])
        assert sampled <= limit.num_tokens + limit.grace_tokens


@given(st.lists(st.integers(2, 11), min_size=1, max_size=30))
def test_no_forced_token_enters_the_loss(reply_ids: list[int]) -> None:
    mask = LIMIT.forced_mask(reply_ids)
    forced = tuple(place for place, is_forced in enumerate(mask) if is_forced)
    turn = Turn(Tokens.unsampled([1]), reply(reply_ids, forced), "stop", is_start=True)
    for sample in rollout_samples(make_rollout(turns=(turn,)), advantage=1.0):
        assert sample.tokens.sampled.tolist() == [False, *(not is_forced for is_forced in mask)]


# Chat


def test_the_budget_is_told_at_the_end_of_the_last_user_message() -> None:
    messages = (Message("user", "first"), Message("assistant", "yes"), Message("user", "second"))
    text = CHAT.text(CHAT.begin(messages, (), 48).prompt_ids)
    assert "user\nsecond\n\n{thinking token budget: 48}<|im_end|>" in text
    assert text.count("budget") == 1
    assert text.endswith("<|im_start|>assistant\n<think>\n")
    for budget in ("off", "unlimited"):
        assert "budget" not in CHAT.text(CHAT.begin(messages, (), budget).prompt_ids)


def test_room_for_the_answer_is_kept() -> None:
    enforcement = BudgetConfig(grace_tokens=16, answer_tokens=20)
    wide = CHAT.begin((), (), 30).thinking_limit(enforcement, room=200)
    assert wide is not None
    assert (wide.num_tokens, wide.grace_tokens) == (30, 16)
    assert CHAT.text(wide.closing_ids) == "\n</think>"
    closing = len(wide.closing_ids)
    tight = CHAT.begin((), (), 30).thinking_limit(enforcement, room=40 + closing + 20)
    assert tight is not None
    assert (tight.num_tokens, tight.grace_tokens) == (30, 10)
    tighter = CHAT.begin((), (), 30).thinking_limit(enforcement, room=12 + closing + 20)
    assert tighter is not None
    assert (tighter.num_tokens, tighter.grace_tokens) == (12, 0)
    for budget in ("off", "unlimited"):
        assert CHAT.begin((), (), budget).thinking_limit(enforcement, 200) is None
    assert all(CHAT.text((id,)).endswith("\n") for id in wide.line_end_ids)


def test_the_text_of_an_end_of_thinking_in_a_prompt_is_only_text() -> None:
    """Typed by a user it is no control token, and the limit counts the reply's tokens only."""
    limit = CHAT.begin((), (), 5).thinking_limit(BudgetConfig(), 100)
    assert limit is not None
    assert limit.end_id not in CHAT.begin((Message("user", "a </think> b"),), (), 5).prompt_ids
    assert limit.end_id not in CHAT.begin((), (), 5).reply_ids(Reply("x", "say </think> now"))[:5]


def test_gold_conversations_are_cut_as_the_engine_would_and_what_it_forces_is_not_trained() -> None:
    messages = (Message("user", "q"), Message("assistant", "42", "one two three four five six seven eight nine ten"))
    limit = CHAT.begin((), (), 4).thinking_limit(BudgetConfig(grace_tokens=2), 200)
    whole, _ = CHAT.conversation(messages, (), 4)
    ids, mask = CHAT.conversation(messages, (), 4, BudgetConfig(grace_tokens=2), 200)
    assert limit is not None
    assert len(ids) < len(whole)
    untrained = [id for id, mine in zip(ids, mask, strict=True) if not mine]
    assert tuple(untrained[-len(limit.closing_ids) :]) == limit.closing_ids
    trained = CHAT.text([id for id, mine in zip(ids, mask, strict=True) if mine])
    assert trained.endswith("\n42<|im_end|>")
    assert trained.startswith("one")
    assert mask.count(True) == 6 + len(CHAT.begin((), (), 4).reply_ids(Reply("42"))) - 2  # minus its own "\n</think>"


# Configuration and stream


@pytest.mark.parametrize("bad", [-1, 0, "-5", "much", 1.5, True, {}, {"32": 0}, {"none": 1}])
def test_budgets_that_are_none_are_refused(bad: object) -> None:
    with pytest.raises(ValueError, match="budget"):
        make_config(environments={"math/Arithmetic-v0": {"budget": bad}})


def test_a_budget_beyond_the_reply_is_refused() -> None:
    with pytest.raises(ValueError, match=r"90 tokens of reasoning, 16 of grace and 32 for the answer"):
        make_config(environments={"math/Arithmetic-v0": {"budget": {"off": 1, "90": 1}}})


def test_the_widest_budget_of_a_curriculum_must_fit_too_and_it_needs_a_number() -> None:
    def with_budget(budget: object) -> dict:
        return {"math/Arithmetic-v0": {"budget": budget, "budget_curriculum": {"num_steps": 5}}}

    make_config(environments=with_budget("24"))
    with pytest.raises(ValueError, match=r"80 tokens of reasoning \(the widest of budget_curriculum\), 16 of grace"):
        make_config(environments=with_budget("40"))
    with pytest.raises(ValueError, match="budget_curriculum needs a budget that is a number of tokens"):
        make_config(environments=with_budget("off"))


def test_each_task_draws_its_budget_from_the_distribution() -> None:
    budgets = {"off": 1.0, "16": 2.0, "unlimited": 1.0}
    config: ExperimentConfig = make_config(environments={"math/Arithmetic-v0": {"budget": budgets}})
    first, second = TaskStream(config.environments, 0, 8), TaskStream(config.environments, 0, 8)
    drawn = [first.task(ordinal).budget for ordinal in range(1000)]
    assert set(drawn) == {"off", 16, "unlimited"}
    assert 430 < drawn.count(16) < 570
    assert drawn == [second.task(ordinal).budget for ordinal in range(1000)]
    assert draw_budget({"unlimited": 1.0}, 5) == "unlimited"


def test_a_chat_without_think_block_refuses_to_enforce() -> None:
    from tests.test_chat import TEMPLATE_CHAT

    with pytest.raises(ChatError, match="think block"):
        TEMPLATE_CHAT.begin((Message("user", "x"),), (), 5).thinking_limit(BudgetConfig(), 100)
