"""Which token columns can the engine return? One file each, registered in `COLUMNS`.

`version` is not one of them: `rl.engine.thread` knows it without vLLM.
"""

from rl.engine.columns.column import Column
from rl.engine.columns.logprob import Logprob

COLUMNS: dict[str, Column] = {"logprob": Logprob()}
