"""Does the learner compute what the engine serves, in NVFP4 as in bfloat16?

    python -m benchmarks.matched_forward --out benchmarks/results/matched_forward.json     (about three minutes)

Publishes a policy to an engine in bfloat16 and in NVFP4, samples replies to the same prompts, and compares the logprobs
of the sampled tokens with the learner's: in bfloat16, with folded weights, and, for contrast, NVFP4 with a learner
that knows nothing of it. The mismatch is mean exp|delta logp| - 1 and the k3 estimate of the KL divergence a token.
"""

import os

os.environ["OMP_NUM_THREADS"] = "2"

import asyncio
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.report import write_report
from envs.registry import make
from rl.config.experiment import ExperimentConfig
from rl.data_types import Sample
from rl.engine.protocol import Engine, Lane, SampledReply, SamplingParams
from rl.tokens import Tokens

KEPT = {"default": None, "head_and_embeddings": ("*lm_head*", "*embed*")}
"""Which weights stay in bfloat16: those of the default configuration, or only these."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much is compared."""

    num_prompts: int = 16
    num_replies: int = 2
    """To each prompt."""
    num_reply_tokens: int = 96
    kept: tuple[str, ...] = tuple(KEPT)


FULL = Size()
SHORT = Size(num_prompts=1, num_replies=1, num_reply_tokens=8, kept=("default",))


def main(
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    policy: Annotated[Path, typer.Option(help="Policy folder.")] = Path("models/smollm2-135m"),
    chat: Annotated[str, typer.Option(help="Its policy.chat.")] = "template",
    short: Annotated[bool, typer.Option(help="One reply, one format; only to see that it runs.")] = False,
) -> None:
    torch.set_num_threads(2)
    size = SHORT if short else FULL
    kept = {name: compare(experiment(policy, chat, KEPT[name], size), size) for name in size.kept}
    write_report(out, {name: summary(result) for name, result in kept.items()}, policy=str(policy), kept=kept)


def summary(result: Mapping[str, Any]) -> dict[str, float]:
    """The mismatch of each pair, and its k3."""
    pairs = ("bfloat16", "nvfp4_matched", "nvfp4_unmatched")
    return {f"{pair}_{name}": result[pair][name] for pair in pairs for name in ("excess", "k3")}


def compare(config: ExperimentConfig, size: Size) -> dict[str, Any]:
    """Both mismatches of the three pairs of engine and learner."""
    from rl.engine.vllm_core import VllmEngine
    from rl.learner.learner import Learner
    from rl.weights.names import checkpoint_tensors
    from rl.weights.shared_memory import remove_weights, write_weights

    policy = config.policy.path
    assert policy is not None
    learner = Learner(policy, config)
    engine = VllmEngine(policy, config, lockstep_steps=0)

    def sample_with(version: int, quantised: bool) -> list[Tokens]:
        weights = learner.folded.quantised if quantised else None
        source = write_weights(checkpoint_tensors(learner.model, "bfloat16", weights), version)
        asyncio.run(engine.load_weights(source))
        remove_weights(source)
        return asyncio.run(sample(engine, config, size))

    try:
        bfloat16 = mismatch(learner.model, sample_with(0, quantised=False))
        rows = sample_with(1, quantised=True)
    finally:
        engine.shutdown()
    unmatched = mismatch(learner.model, rows)
    with learner.folded.in_place():
        matched = mismatch(learner.model, rows)
    return {
        "weights": learner.folded.describe(),
        "bfloat16": bfloat16,
        "nvfp4_matched": matched,
        "nvfp4_unmatched": unmatched,
        "matched_by_bfloat16": {name: matched[name] / bfloat16[name] for name in ("excess", "k3")},
        "unmatched_by_matched": {name: unmatched[name] / matched[name] for name in ("excess", "k3")},
    }


def experiment(policy: Path, chat: str, keep: tuple[str, ...] | None, size: Size) -> ExperimentConfig:
    tree = {
        "run_dir": tempfile.gettempdir(),
        "seed": 0,
        "weights": "shared_memory",
        "policy": {"path": str(policy), "chat": chat, "max_tokens": 384},
        "precision": {"format": "nvfp4", **({"keep": keep} if keep else {})},
        "environments": {"math/GradeSchool-v0": {"options": {"source": "variants"}}},
        "learner": {"cpus": 2},
        "rollout": {"max_in_flight": size.num_prompts * size.num_replies, "kv_cache_gib": 0.5},
        "train": {"num_steps": 1},
    }
    return ExperimentConfig.model_validate(tree)


async def sample(engine: Engine, config: ExperimentConfig, size: Size) -> list[Tokens]:
    """Prompts and replies as whole rows."""
    from rl.chat.chat import load_chat

    assert config.policy.path is not None
    chat = load_chat(config.policy.path, config.policy.chat)
    prompts = []
    for seed in range(size.num_prompts):
        env = make("math/GradeSchool-v0")
        messages, _ = env.reset(seed=seed, options={"source": "variants"})
        prompts += [chat.begin(messages, (), "unlimited").prompt_ids] * size.num_replies
    lanes = engine.open_lanes(len(prompts))
    params = [SamplingParams(size.num_reply_tokens, 1.0, 1.0, seed, chat.stop_ids) for seed in range(len(prompts))]
    replies = await asyncio.gather(*map(reply, lanes, prompts, params))
    return [
        Tokens.joined([Tokens.unsampled(prompt), reply.tokens]) for prompt, reply in zip(prompts, replies, strict=True)
    ]


async def reply(lane: Lane, prompt: Sequence[int], params: SamplingParams) -> SampledReply:
    """One reply; gives the lane's seat back."""
    try:
        await lane.seated()
        return await lane.sample(prompt, params)
    finally:
        lane.close()


def mismatch(model: Any, rows: Sequence[Tokens]) -> dict[str, float]:
    from rl.algorithms.kl import k3
    from rl.learner.batching import make_batches
    from rl.learner.forward import policy_logprobs

    samples = [Sample("math/GradeSchool-v0", row, advantage=0.0) for row in rows]
    deltas = []
    for batch in make_batches(samples, 2048, 0):
        with torch.no_grad():
            logprobs_BT, _ = policy_logprobs(model, batch, torch.bfloat16, 1.0, 512)
        deltas.append((logprobs_BT - batch.columns["logprob"])[batch.loss_mask_BT])
    delta = torch.cat(deltas).double()
    return {
        "tokens": len(delta),
        "excess": (delta.abs().exp().mean() - 1).item(),
        "k3": k3(delta).mean().item(),
    }


if __name__ == "__main__":
    typer.run(main)
