"""`python -m envs pivots`: which turns of your conversations can a policy play one by one?"""

from pathlib import Path

from envs.commands.output import write_lines
from envs.pivots import PivotError, make_rows


def write_pivots(conversations: Path, out: Path) -> str:
    """Write one row a turn, and return what was written and how to profile it. Raises `PivotError`, `OutputError`."""
    rows = make_rows(conversations)
    num_calls = sum(bool(row["expert"].get("tool_calls")) for row in rows)
    num = sum(row["split"] == "train" for row in rows)
    if not num_calls:
        raise PivotError(
            f"{conversations} has no assistant's message with tool_calls; turns without calls teach an agent nothing,"
            " since any text is right there"
        )
    write_lines(out, rows)
    return (
        f"{out}: {len(rows)} turns, {num_calls} with calls and {len(rows) - num_calls} answers: {num} for training,"
        f" {len(rows) - num} held out\n"
        f"next: python -m envs eval tools/Pivot-v0 rows={out} --policy FOLDER --split train -n {num} -k 8 --out"
        " played.jsonl"
    )
