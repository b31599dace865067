"""What the engine says about each token that it samples, by name: one file a column.

`version` is not among them: it is known without asking vLLM (`rl.engine.thread`).
"""

from rl.engine.columns.column import Column
from rl.engine.columns.logprob import Logprob

COLUMNS: dict[str, Column] = {"logprob": Logprob()}
