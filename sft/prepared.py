"""What does the supervised stage train? Its rows, held-out rows, policy and checkpoint, prepared by the first rank."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rl.chat.chat import load_chat
from rl.chat.formats import new_format
from rl.config.experiment import ExperimentConfig
from rl.policies import build_policy
from sft.amounts import amounts_by_source, in_words
from sft.checkpoints import prepare
from sft.data import Row, token_rows, tokenizer_texts, training_conversations
from sft.heldout import split_rows
from sft.mixture import rows_by_source
from sft.plain_thinking import plain_thinking
from sft.rows import Conversation, SftDataError
from sft.saying import say
from sft.stage import empty_folder, replace_folder


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the first rank prepares for all."""

    policy: Path
    rows: list[Row]
    """To train."""
    heldout: list[Row]
    counts: list[int]
    """Rows that each source gives to the stage."""
    pad_id: int
    checkpoint: Path | None
    """Of the stopped stage that is continued."""


def prepare_stage(config: ExperimentConfig, partial: Path) -> Prepared:
    """Read and tokenise the rows, build the policy if it is to be built, and write what the report tells of sources.

    `partial` is the stage's folder until it is complete. Raises `SftDataError`, `envs.gold.GoldError`,
    `rl.chat.format.ChatError`, and what `envs.rollout_file.read_rollouts` raises.
    """
    conversations = training_conversations(config)
    policy = config.policy.path or _build(config, conversations)
    chat = load_chat(policy, config.policy.chat)
    if warning := plain_thinking(conversations, chat, config.policy.path):
        say(warning)
    sft = config.sft
    assert sft is not None
    kept = [one for one in conversations if sft.repetition_max is None or one.repetition <= sft.repetition_max]
    if not kept:
        raise SftDataError(
            f"the reasoning of all conversations repeats itself: raise sft.repetition_max ({sft.repetition_max})"
        )
    rows = token_rows(kept, chat, config)
    trained, heldout = split_rows(rows, sft.heldout_share, config.seed)
    counts = rows_by_source([sum(row.part == part for row in trained) for part in range(len(sft.sources))], sft)
    checkpoint = prepare(partial, rows, config, "sft", policy)
    amounts = amounts_by_source(conversations, kept, rows, trained, counts, sft)
    (partial / "sources.jsonl").write_text("".join(json.dumps(one) + "\n" for one in amounts))
    for line in in_words(amounts):
        say(line)
    return Prepared(policy, trained, heldout, counts, chat.pad_id, checkpoint)


def _build(config: ExperimentConfig, conversations: Sequence[Conversation]) -> Path:
    assert config.policy.build is not None
    target, partial = config.run_dir / "policy", config.run_dir / "policy.partial"
    empty_folder(partial)
    format = new_format(config.policy.chat)
    build_policy(config.policy.build, tokenizer_texts(conversations, format), partial, config.seed, format)
    replace_folder(partial, target)
    return target
