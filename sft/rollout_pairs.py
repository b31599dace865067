"""Which rollouts of a run become preference pairs? The best of each task beside its worst.

Rewards that only compare the members of a group make pairs within a group. What is never taken is said in
`sft.from_rollouts`.
"""

from collections.abc import Iterator, Sequence

from envs.facts import facts
from envs.json_lines import JsonObject
from rl.chat.format import with_budget
from sft.from_rollouts import Played, PlayedTask, message_objects, origin, tools_of
from sft.rows import to_last_reply


def preference_pairs(tasks: Sequence[PlayedTask], margin_min: float) -> Iterator[JsonObject]:
    """A task's best rollout beside its worst, if their rewards are at least `margin_min` apart: rows with `prompt`,
    `chosen` and `rejected`, the form of TRL's DPO and reward trainers. Pairs that say the same twice are left out.
    """
    for task, best, worst in _best_and_worst(tasks, margin_min):
        if _is_one_text(best, worst):
            continue
        prompt = best.messages[: best.first_reply]
        chosen, rejected = (message_objects(to_last_reply(one.messages)[len(prompt) :]) for one in (best, worst))
        yield {
            "prompt": message_objects(with_budget(prompt, task.effort or "unlimited")),
            "chosen": chosen,
            "rejected": rejected,
            "tools": tools_of(task),
            **origin(task, best.reward),
            "rejected_reward": worst.reward,
        }


def num_equal_pairs(tasks: Sequence[PlayedTask], margin_min: float) -> int:
    """Tasks that `preference_pairs` leaves out because their best and worst replies are the same text."""
    return sum(_is_one_text(best, worst) for _, best, worst in _best_and_worst(tasks, margin_min))


def _best_and_worst(tasks: Sequence[PlayedTask], margin_min: float) -> Iterator[tuple[PlayedTask, Played, Played]]:
    for task in tasks:
        pairs = [pair for members in _comparable(task) if (pair := _extremes(members, margin_min))]
        if pairs:
            yield task, *max(pairs, key=lambda pair: pair[0].reward - pair[1].reward)


def _comparable(task: PlayedTask) -> list[list[Played]]:
    """The task's rollouts, apart where their rewards are known only against the others of their group."""
    groups: dict[str, list[Played]] = {}
    by_group = len({one.group_id for one in task.rollouts}) > 1 and facts(task.env_id).scores_groups
    for one in task.rollouts:
        groups.setdefault(one.group_id if by_group else "", []).append(one)
    return list(groups.values())


def _extremes(members: Sequence[Played], margin_min: float) -> tuple[Played, Played] | None:
    """The best of the sound rollouts and the worst of all, if a pair can be made of them."""
    sound = [one for one in members if one.is_sound]
    if not sound:
        return None
    best = min(sound, key=lambda one: (-one.reward, one.num_characters))
    worst = min(members, key=lambda one: (one.reward, one.num_characters))
    if best.reward - worst.reward < max(margin_min, 0.0) or best.reward == worst.reward:
        return None
    if best.messages[: best.first_reply] != worst.messages[: worst.first_reply]:
        return None  # an environment that opens differently with one seed
    return best, worst


def _is_one_text(best: Played, worst: Played) -> bool:
    return to_last_reply(best.messages) == to_last_reply(worst.messages)
