"""A teacher's engine gives the logprobs that the learner computes for the same rows."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from rl.chat.formats.nemotron import NemotronFormat
from rl.config.policy import TinyHybrid
from rl.data_types import Sample
from rl.engine.protocol import EngineError
from rl.learner.batching import make_batches
from rl.learner.forward import policy_logprobs
from rl.learner.policy import load_policy
from rl.policies import build_policy
from rl.tokens import Tokens
from tests.makers import make_config

MAX_TOKENS = 40


@pytest.mark.slow
def test_rows_are_scored_as_the_learner_computes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rl.engine import scorer as engine
    from rl.engine.scorer import Scorer

    # Rows are cut in chunks, and one fills the context of the checkpoint.
    monkeypatch.setitem(engine.ARGUMENTS, "max_num_batched_tokens", 16)
    build_policy(TinyHybrid(), ["<|im_start|>user\n1+1=?<|im_end|>\n"] * 200, tmp_path, 0, NemotronFormat())
    told = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**told, "max_position_embeddings": MAX_TOKENS}))
    config = make_config(
        policy={"path": tmp_path, "max_tokens": MAX_TOKENS},
        rollout={"max_in_flight": 2, "kv_cache_gib": 0.1, "max_reply_tokens": 8},
    )
    generator = np.random.default_rng(0)
    rows = [generator.integers(260, size=size).tolist() for size in (7, 1, MAX_TOKENS, 23, 7)]
    scorer = Scorer(tmp_path, config)
    try:
        found = scorer.score(rows)
        with pytest.raises(EngineError, match="the teacher's engine failed"):
            scorer.score([[1] * (MAX_TOKENS + 5)])
        again = scorer.score(rows)
    finally:
        scorer.shutdown()
    model = load_policy(tmp_path)
    for row, logprobs, same in zip(rows, found, again, strict=True):
        assert logprobs.dtype == np.float32 and logprobs[0] == 0.0 and len(logprobs) == len(row)
        np.testing.assert_allclose(same, logprobs, atol=1e-5)
        if len(row) > 1:
            tokens = Tokens.make(row, [False, *[True] * (len(row) - 1)], {})
            (batch,) = make_batches([Sample("", tokens, 0.0)], 4096, 0)
            with torch.no_grad():
                expected, _ = policy_logprobs(model, batch, torch.float32, 1.0, 1024)
            np.testing.assert_allclose(logprobs, expected[0].numpy(), atol=1e-4)
