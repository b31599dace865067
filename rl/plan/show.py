"""Which tables does `python -m rl plan` print, and does the experiment fit?"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from rich.console import Console
from rich.table import Table

from rl.config.checkpoint_files import CheckpointFileError
from rl.config.errors import ConfigError, Problem
from rl.config.experiment import ExperimentConfig
from rl.config.hub import config_command
from rl.config.read import policy_problem
from rl.plan.beside import shapes_beside
from rl.plan.cards import CARDS, Card, chosen_card, host_bytes, this_machine
from rl.plan.fit import Plan, make_plan
from rl.plan.memory import GIB, Part, total
from rl.plan.nodes import LEARNER, Nodes
from rl.plan.policy import policy_shapes
from rl.plan.shapes import PolicyShapes, UnknownShapesError
from rl.plan.speed import (
    BANDWIDTH_SHARE,
    COPY_BYTES_S,
    FLOPS_SHARE,
    LEAST_STEP_S,
    NETWORK_BYTES_S,
    Speed,
    step_speed,
    train_flops,
)


def show_plan(config: ExperimentConfig, gpu: str, console: Console | None = None, nodes: Nodes | None = None) -> bool:
    """Print the plan of an experiment on the named card, and whether it fits. Nothing is started, no weights loaded.

    Raises `ConfigError` for a policy that is not there, and for cards and reservations that do not go together.
    """
    console = console or Console(highlight=False)
    if problem := policy_problem(config, config_command):
        raise ConfigError([problem])
    learner_card, engine_card = _cards(config, gpu, nodes)
    cards = [card for card in (learner_card, engine_card) if card.is_gpu]
    try:
        shapes = policy_shapes(config)
        host = None if gpu or nodes else host_bytes()
        plan = make_plan(shapes, config, cards[0] if cards else None, host, nodes, shapes_beside(config))
        speed = step_speed(shapes, config, plan.engine, engine_card, learner_card)
    except (CheckpointFileError, UnknownShapesError) as error:
        fix = "download or copy the checkpoint again, or choose one of a family that transformers has"
        raise ConfigError([Problem(config.place("policy", "path"), "policy.path", str(error), fix)]) from None
    for table in (_policy(plan), _learner(plan), _engine(plan), *_beside(plan), _places(plan), *_nodes(plan)):
        console.print(table)
    for one in {engine_card.name: engine_card, learner_card.name: learner_card}.values():
        console.print(_card_text(one, config), soft_wrap=True)
    if plan.engine.num_sequences:
        console.print(_speed_text(speed, shapes, config), soft_wrap=True)
    if nodes is not None:
        console.print(_publish_text(plan), soft_wrap=True)
    _print_verdict(plan, console)
    return plan.fits


def _print_verdict(plan: Plan, console: Console) -> None:
    for remark in plan.remarks():
        console.print(f"note: {remark}", soft_wrap=True)
    for wrong, ways in plan.problems():
        console.print(f"does not fit: {wrong}", soft_wrap=True)
        for way in ways:
            console.print(f"    change {way}", soft_wrap=True, markup=False)
    if plan.fits:
        console.print("it fits")


def _cards(config: ExperimentConfig, gpu: str, nodes: Nodes | None) -> tuple[Card, Card]:
    """What learner and engines compute on: the card, or this machine if they reserve none. Raises `ConfigError`."""
    reserved = (config.learner.gpus > 0, config.rollout.gpus_per_worker > 0)
    if (gpu or nodes) and not any(reserved):
        option = f"--gpu {gpu}" if gpu else "--nodes"
        raise ConfigError(
            f"{option}: the experiment reserves no GPU, so it would compute on CPUs; add overrides such as"
            " learner.gpus=0.5 rollout.gpus_per_worker=0.5 rollout.gpu_memory_share=0.4"
        )
    card = chosen_card(gpu) if any(reserved) else None
    if any(reserved) and card is None:
        raise ConfigError(
            f"the experiment reserves GPUs and this machine has none: name a card with --gpu: {', '.join(CARDS)}"
        )
    host = None if all(reserved) else this_machine(max(1, int(config.learner.cpus)))
    learner, engine = (card if is_reserved else host for is_reserved in reserved)
    assert learner is not None and engine is not None
    return learner, engine


def _policy(plan: Plan) -> Table:
    shapes, config = plan.shapes, plan.config
    size_text = f"{config.precision.name}, {config.precision.arithmetic} passes"
    experts = f"{shapes.expert_share:.1%} of the routed experts" if shapes.num_expert_weights else ""
    rows = [
        (
            "weights",
            f"{shapes.num_weights / 1e6:,.1f} M",
            "" if shapes.is_tied else "embeddings and head are two matrices",
        ),
        ("active for each token", f"{shapes.num_active_weights / 1e6:,.1f} M", experts),
        ("embeddings", f"{shapes.num_embedding_weights / 1e6:,.1f} M", f"vocabulary {shapes.vocab_size:,}"),
        ("one publish", _gib(plan.published), size_text),
    ]
    table = Table("policy", "size", "", title="The policy", title_justify="left")
    for row in rows:
        table.add_row(*row)
    return table


def _learner(plan: Plan) -> Table:
    num = plan.config.learner.num_ranks
    title = "Memory of the learner" if num == 1 else f"Memory of each of the learner's {num} ranks"
    return _parts(title, plan.learner, total(plan.learner))


def _engine(plan: Plan) -> Table:
    engine, config = plan.engine, plan.config
    size = 4 if config.precision.arithmetic == "float32" else 2
    state = plan.shapes.state_bytes(size)
    sequence = f"{plan.shapes.num_cached * size / 1024:,.1f} KiB a token"
    sequence += f" and a state of {state / 2**20:,.2f} MiB, in whole pages" if state else ", in whole pages"
    cache = f"{engine.num_sequences:,} sequences of {config.policy.max_tokens:,} tokens"
    cache += f"; rollout.max_in_flight is {config.rollout.max_in_flight}"
    parts = [
        *engine.parts,
        Part("cache", max(0.0, engine.cache_bytes), cache),
        Part("  one sequence", engine.sequence_bytes, sequence),
    ]
    title = "Memory of an engine"
    if config.rollout.gpus_per_worker > 1:
        title += ", on each of its cards"
    return _parts(title, parts, engine.total_bytes)


def _beside(plan: Plan) -> Iterator[Table]:
    for one in plan.beside:
        longest = f"{one.memory.num_sequences:,} sequences of {one.max_tokens_key}"
        parts = [*one.memory.parts, Part("cache", max(0.0, one.memory.cache_bytes), longest)]
        yield _parts(
            f"Memory of the {one.name}" + (f", each of {one.num}" if one.num > 1 else ""), parts, one.memory.total_bytes
        )


def _parts(title: str, parts: Sequence[Part], whole: float) -> Table:
    table = Table("part", "size", "how counted", title=title, title_justify="left", show_footer=True)
    table.columns[0].footer, table.columns[1].footer = "together", _gib(whole)
    for part in parts:
        table.add_row(part.name, _gib(part.num_bytes), part.how)
    return table


def _places(plan: Plan) -> Table:
    table = Table("place", "needed", "there", "on it", title="Places", title_justify="left")
    for place in plan.places:
        tenants = _counted({name: place.count(name) for name, _ in place.tenants}, plan)
        there = "not known" if place.capacity is None else _gib(place.capacity)
        table.add_row(place.name, _gib(place.used), there, tenants)
    return table


def _nodes(plan: Plan) -> Iterator[Table]:
    """How many nodes have which processes."""
    if plan.nodes is None or not plan.layout:
        return
    title = f"{plan.nodes.num} nodes, {plan.nodes.gpus} GPUs each"
    table = Table("nodes", "on each of them", title=title, title_justify="left")
    for processes, alike in groupby(plan.layout):
        table.add_row(str(len(list(alike))), _counted(processes, plan))
    yield table


def _counted(counts: Mapping[str, int], plan: Plan) -> str:
    words = {LEARNER: "learner" if plan.config.learner.num_ranks == 1 else "rank"}
    named = [(words.get(name, name), num) for name, num in counts.items()]
    return ", ".join(name if num == 1 else f"{num} {name}s" for name, num in named)


def _card_text(card: Card, config: ExperimentConfig) -> str:
    arithmetic = config.precision.arithmetic
    return (
        f"{card.name}: {card.memory_bytes / GIB:,.1f} GiB, {card.flops[arithmetic] / 1e12:,.2f} TFLOP/s in"
        f" {arithmetic}, {card.bandwidth / 1e9:,.0f} GB/s ({card.source})"
    )


def _speed_text(speed: Speed, shapes: PolicyShapes, config: ExperimentConfig) -> str:
    relation = "one after the other" if config.train.max_staleness == 0 else "at the same time"
    return (
        f"a step: sampling {speed.sample_s:,.1f} s, training {speed.train_s:,.1f} s, {relation}: {speed.longer} takes"
        f" longer. Assumed: every rollout has {config.policy.max_tokens:,} tokens, {config.rollout.max_reply_tokens:,}"
        f" of them in one reply; {speed.num_in_flight} sequences in flight, {speed.engine_step_s * 1000:,.1f} ms an"
        f" engine's step ({BANDWIDTH_SHARE:.0%} of the bandwidth, at least {LEAST_STEP_S[True] * 1000:g} ms on a GPU"
        f" and {LEAST_STEP_S[False] * 1000:g} ms on a CPU); {train_flops(shapes, config) / 1e9:,.3g} GFLOP a trained"
        f" token, {FLOPS_SHARE:.0%} of the peak; environments, publishing and exchanges between ranks take no time"
    )


def _publish_text(plan: Plan) -> str:
    assumed = f"{NETWORK_BYTES_S / 1e9:g} GB/s between two nodes"
    if not plan.config.weights.is_live:
        copied = f"{COPY_BYTES_S / 1e9:g} GB/s from the learner into engines on its node"
        assumed = f"{copied}, {assumed}, and nodes that pass a version on"
    return (
        f"a publish: {_gib(plan.published)} in {plan.publish_s:,.0f} s to engines on {max(1, len(plan.layout))} nodes."
        f" Assumed: {assumed}"
    )


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / GIB:,.2f} GiB" if num_bytes >= GIB / 10 else f"{num_bytes / 2**20:,.2f} MiB"
