"""How much of each source is trained: conversations, tokens, epochs, and what was varied, skipped or left out?"""

from collections.abc import Iterator, Sequence
from typing import Any

from rl.config.supervised import SftConfig
from rl.data_types import EFFORTS
from sft.data import IGNORED_LABEL, Row
from sft.rows import Conversation


def amounts_by_source(
    conversations: Sequence[Conversation],
    kept: Sequence[Conversation],
    rows: Sequence[Row],
    trained: Sequence[Row],
    counts: Sequence[int],
    sft: SftConfig,
) -> list[dict[str, Any]]:
    """A line of `sources.jsonl` for each source, with the keys of `rl.runs.sft_sources`, and why some are skipped.

    Of all conversations `kept` are not left out, `rows` are short enough, and `trained` are not held out; `counts` are
    what each source gives to the stage. What is varied is counted in `kept`.
    """
    found = []
    for part, source in enumerate(sft.sources):
        num_given = sum(one.part == part for one in conversations)
        left = [one for one in kept if one.part == part]
        num_short = sum(row.part == part for row in rows)
        own = [row for row in trained if row.part == part]
        found.append(
            {
                "source": source.name,
                "conversations": len(own),
                "tokens": sum(len(row.input_ids) for row in own),
                "trained_tokens": sum(label != IGNORED_LABEL for row in own for label in row.labels),
                "rows": counts[part],
                "epochs": round(counts[part] / len(own), 3),
                "no_thinking": sum(one.budget == "off" for one in left),
                "cut": sum(one.cut_at is not None for one in left),
                "effort": sum(one.effort is not None or one.budget in EFFORTS for one in left),
                "repetitive": num_given - len(left),
                "too_long": len(left) - num_short,
                "held_out": num_short - len(own),
                "skipped": num_given - len(own),
            }
        )
    return found


def in_words(amounts: Sequence[dict[str, Any]]) -> Iterator[str]:
    """A sentence for each source."""
    for one in amounts:
        text = f"{one['source']}: {one['conversations']:,} conversations, {one['tokens']:,} tokens,"
        text += f" {one['trained_tokens']:,} of them trained; {one['rows']:,} rows of the stage,"
        text += f" {one['epochs']:.2f} epochs"
        more = {
            "no_thinking": "with thinking off",
            "cut": "cut at a budget",
            "effort": "with an effort",
            "repetitive": "left out, as their reasoning repeats itself",
            "too_long": "longer than policy.max_tokens skipped",
            "held_out": "held out",
        }
        yield text + "".join(f"; {one[key]:,} {words}" for key, words in more.items() if one[key])
