"""Which keys of an experiment's sections must fit together? What one section alone can say stands in that section."""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rl.config.experiment import ExperimentConfig


def built_policies_are_taught(config: "ExperimentConfig") -> None:
    if config.policy.build is not None and config.sft is None:
        raise ValueError("policy.build makes a random policy: add an sft section, or set policy.path")


def replayed_routes_exist(config: "ExperimentConfig") -> None:
    built = config.policy.build
    if not config.learner.routing_replay or built is None:
        return
    if "E" not in built.pattern:
        raise ValueError(
            f"learner.routing_replay is for mixtures of experts, but policy.build.pattern ({built.pattern}) has no"
            " layer E: remove it, or add one"
        )
    if built.num_experts_per_token == 1:
        raise ValueError(
            "learner.routing_replay needs at least two experts a token, but policy.build.num_experts_per_token is"
            " 1: raise it, or remove the key"
        )


def teachers_are_known_and_used(config: "ExperimentConfig") -> None:
    asked = {algorithm.teacher_name for algorithm in config.algorithms if algorithm.teacher_name}
    if unknown := sorted(asked - config.teachers.keys()):
        known = ", ".join(config.teachers) or "none"
        raise ValueError(f"loss.teacher names {unknown[0]!r}, but `teachers` has {known}: add it there")
    if unused := sorted(config.teachers.keys() - asked):
        raise ValueError(
            f"teachers.{unused[0]} is used by no environment: set environments.ID.loss to {{algorithm: mopd,"
            f" teacher: {unused[0]}}}, or remove it"
        )
    if config.teachers and config.rollout.temperature != 1.0:
        raise ValueError(
            f"teachers give logprobs at temperature 1, but rollout.temperature is {config.rollout.temperature:g}:"
            " set it to 1"
        )


def nothing_changes_rewards_that_are_not_read(config: "ExperimentConfig") -> None:
    if config.teachers and config.train.max_sampling_rounds > 1:
        raise ValueError(
            "train.max_sampling_rounds leaves out groups whose rewards are equal, but distillation reads no"
            " rewards: remove it"
        )
    for env_id, environment in config.environments.items():
        if environment.shaping and config.algorithm_of(env_id).teacher_name:
            raise ValueError(
                f"environments.{env_id}.shaping changes rewards, which distillation from a teacher does not read:"
                " remove it"
            )


def adapters_are_merged_exactly(config: "ExperimentConfig") -> None:
    adapter = config.learner.adapter
    if adapter is not None and adapter.publish == "merged" and config.precision.is_quantised:
        raise ValueError(
            f"learner.adapter.publish: merged does not go with precision {config.precision.name}: merged weights"
            " would be quantised anew at each step; choose publish: adapter"
        )
    for name, stage in (("sft", config.sft), ("dpo", config.dpo)):
        if stage is not None and stage.adapter is not None and config.precision.is_quantised:
            raise ValueError(
                f"{name}.adapter does not go with precision {config.precision.name}: the stage's merged weights would"
                f" be quantised anew for reinforcement learning; remove {name}.adapter, or choose bf16"
            )
    if config.reward_model is not None and config.precision.is_quantised:
        raise ValueError(
            f"reward_model does not go with precision {config.precision.name}: no engine serves reward models;"
            " choose bf16 or float32"
        )


def policies_that_are_left_out_are_copies(config: "ExperimentConfig") -> None:
    if config.train.save_policy_every is not None and (
        config.learner.num_ranks == 1 or config.learner.adapter is not None
    ):
        why = "learner.num_ranks is 1" if config.learner.num_ranks == 1 else "learner.adapter is set"
        raise ValueError(
            f"train.save_policy_every leaves out a copy of what several ranks save in slices, but {why}: then"
            " the policy's folder is the only place of the weights, and each checkpoint has it; remove it"
        )


def engines_that_sleep_are_idle(config: "ExperimentConfig") -> None:
    if config.rollout.sleep and config.train.max_staleness:
        raise ValueError(
            f"rollout.sleep needs engines that play nothing during an update, but train.max_staleness is"
            f" {config.train.max_staleness}: set it to 0, or share the card by rollout.gpu_memory_share"
        )


def cluster_holds_the_run(config: "ExperimentConfig") -> None:
    needed, _ = config.reserved
    if config.ray.local_cpus is not None and config.ray.local_cpus < needed:
        raise ValueError(
            f"ray.local_cpus ({config.ray.local_cpus}) is less than the sum of the ranks' learner.cpus and the"
            f" workers' cpus_per_worker ({needed:g})"
        )


def pairs_can_share(config: "ExperimentConfig") -> None:
    learner, rollout = config.learner, config.rollout
    if config.ray.placement != "colocated":
        return
    if config.teachers or config.judge:
        beside = "the engines of `teachers`" if config.teachers else "the judge"
        raise ValueError(f"ray.placement: colocated has no places for {beside}: choose separate")
    if learner.num_ranks != rollout.num_workers:
        raise ValueError(
            f"ray.placement: colocated puts one rank and one engine together, but learner.num_ranks is"
            f" {learner.num_ranks} and rollout.num_workers {rollout.num_workers}: make them equal, or choose"
            " separate"
        )
    gpus = (learner.gpus, rollout.gpus_per_worker)
    if any(gpus) and (not all(gpus) or sum(gpus) > 1):
        raise ValueError(
            f"ray.placement: colocated lets a rank and an engine share a card, but learner.gpus is {gpus[0]:g} and"
            f" rollout.gpus_per_worker {gpus[1]:g}: give each a part of it, together at most 1, or choose separate"
        )


def budgets_fit(config: "ExperimentConfig") -> None:
    for env_id, environment in config.environments.items():
        widened = environment.budget_curriculum
        budgets = [widened.at(budget, 0) if widened else budget for budget in environment.budget]
        most = max((budget for budget in budgets if isinstance(budget, int)), default=0)
        if widened and not most:
            raise ValueError(
                f"environments.{env_id}.budget_curriculum needs a budget that is a number of tokens: add one to"
                " budget, or remove it"
            )
        needed = most + config.budget.grace_tokens + config.budget.answer_tokens
        if most and needed > config.rollout.max_reply_tokens:
            widest = " (the widest of budget_curriculum)" if widened else ""
            raise ValueError(
                f"environments.{env_id}.budget: {most} tokens of reasoning{widest},"
                f" {config.budget.grace_tokens} of grace and {config.budget.answer_tokens} for the answer"
                " (section budget) do not fit"
                f" rollout.max_reply_tokens ({config.rollout.max_reply_tokens})"
            )


def sizes_fit(config: "ExperimentConfig") -> None:
    if config.rollout.max_reply_tokens >= config.policy.max_tokens:
        raise ValueError(
            f"rollout.max_reply_tokens ({config.rollout.max_reply_tokens}) must be smaller than policy.max_tokens"
            f" ({config.policy.max_tokens}), which also counts the prompt"
        )
    if config.learner.tokens_per_micro_batch < config.policy.max_tokens:
        raise ValueError(
            f"learner.tokens_per_micro_batch ({config.learner.tokens_per_micro_batch}) must hold one sequence of"
            f" policy.max_tokens ({config.policy.max_tokens})"
        )


RULES: tuple[Callable[["ExperimentConfig"], None], ...] = (
    built_policies_are_taught,
    replayed_routes_exist,
    teachers_are_known_and_used,
    nothing_changes_rewards_that_are_not_read,
    adapters_are_merged_exactly,
    policies_that_are_left_out_are_copies,
    engines_that_sleep_are_idle,
    cluster_holds_the_run,
    pairs_can_share,
    budgets_fit,
    sizes_fit,
)
"""Each raises `ValueError`; the first that does is told."""
