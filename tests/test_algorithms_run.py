"""A run with an algorithm for each environment, shaping, penalties and dynamic sampling, on a policy that it builds."""

from pathlib import Path

import pytest

from tests.trained import steps_of, trained

YAML = """
run_dir: {run_dir}
seed: 3
policy: {{build: {{}}}}
sft: {{num_steps: 30, num_conversations: 600, batch_size: 16}}
environments:
  math/Arithmetic-v0:
    loss: {{algorithm: gspo, clip_low: 0.2, clip_high: 0.2}}
    shaping: [length, {{shaping: overlong, max_tokens: 32, buffer_tokens: 16}}]
  tools/Store-v0:
    loss: {{algorithm: reinforce++, reference_kl: 0.01, reference_kl_in: reward, entropy_bonus: 0.001}}
    shaping: [{{shaping: effort, marker: "?"}}]
train:
  {{num_steps: 3, num_prompts: 3, group_size: 3, max_sampling_rounds: 3, max_staleness: {max_staleness}, record: false}}
loss: {{preset: super}}
evaluation: {{num_tasks: 2, num_samples: 2}}
rollout: {{max_in_flight: 16, kv_cache_gib: 0.1, max_reply_tokens: 32}}
ray: {{address: local}}
"""


@pytest.mark.slow
@pytest.mark.parametrize("max_staleness", [0, 1])
def test_a_run_trains_with_an_algorithm_for_each_environment(tmp_path: Path, max_staleness: int) -> None:
    lines = trained(YAML.format(run_dir=tmp_path / "run", max_staleness=max_staleness), tmp_path)
    steps = steps_of(lines)
    assert [line["step"] for line in steps] == [1, 2, 3]
    assert not (tmp_path / "run" / "record").exists()
    most = 9 if max_staleness == 0 else 6
    assert all(3 <= line["groups"] <= most for line in steps)
    assert any("shaping/math/Arithmetic-v0" in line for line in steps)
    assert {"update/clip_fraction", "update/reference_kl", "update/entropy"} <= steps[-1].keys()
    evaluated = next(line for line in lines if line.get("kind") == "evaluation")
    assert evaluated["low/math/Arithmetic-v0"] <= evaluated["reward/math/Arithmetic-v0"]
    assert {"pass_at_2/math/Arithmetic-v0", "majority/math/Arithmetic-v0"} <= evaluated.keys()
