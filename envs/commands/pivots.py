"""`python -m envs pivots`: which turns of your conversations can a policy play one by one?"""

from pathlib import Path

from envs.commands.output import write_lines
from envs.pivots import PivotError, counted, pivot_object, read_conversations


def write_pivots(conversations: Path, out: Path) -> str:
    """Write one row a turn, and return what was written and how to profile it. Raises `PivotError`, `OutputError`."""
    turns = list(read_conversations(conversations))
    if not any(turn.action.tool_calls for turn in turns):
        raise PivotError(
            f"{conversations} has no assistant's message with tool_calls; turns without calls teach an agent nothing,"
            " since any text is right there"
        )
    write_lines(out, map(pivot_object, turns))
    num = sum(turn.split == "train" for turn in turns)
    return (
        f"{out}: {counted(turns)}\n"
        f"next: python -m envs eval tools/Pivot-v0 rows={out} --policy FOLDER --split train -n {num} -k 8 --out"
        " played.jsonl"
    )
