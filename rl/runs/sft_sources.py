"""How much of each source did the supervised stage train? The table of the report, from `RUN/sft/sources.jsonl`."""

from envs.json_lines import read_lines
from rl.runs.history import History
from rl.runs.html import table

COLUMNS = ("conversations", "tokens", "trained_tokens", "rows", "epochs", "no_thinking", "cut", "effort", "skipped")
"""Keys of a line beside `source`. `rows` are those of the whole stage, `skipped` the conversations that are too long,
left out or held out."""


def sources_table(history: History) -> str:
    """A row for each source; empty without a supervised stage."""
    lines = read_lines(history.run.sft_sources_file)
    rows = [[str(line["source"]), *(f"{line[name]:,}" for name in COLUMNS)] for line in lines]
    return table(["source", *(name.replace("_", " ") for name in COLUMNS)], rows) if rows else ""
