"""What does the tool loop of TRL's GRPOTrainer cost? Making, resetting and rewarding environments is left out."""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from benchmarks.episode_sides.common import CALLED, ENDED, PROMPT, Place, Size, run_side, tiny_policy


class LookAroundForTrl(Place):
    """The task in TRL's form."""

    def reset(self, **_: Any) -> str:
        return PROMPT

    def get_reward(self) -> float:
        return 1.0


class ScriptedTrainer(GRPOTrainer):
    """Calls the tool in an episode's first turn and ends the episode in its second; takes the time of its tool loop."""

    call_ids: Sequence[int]
    end_ids: Sequence[int]
    num_opening_tokens: int
    """Of the episode's first prompt; a longer prompt holds the call and its result."""
    seconds: list[float]
    """CPU seconds of each batch."""

    def _generate_single_turn(self, prompt_ids: Any, *_: Any, **__: Any) -> Any:
        self.num_opening_tokens = min(self.num_opening_tokens, *map(len, prompt_ids))
        is_second = [len(ids) > self.num_opening_tokens for ids in prompt_ids]
        replies = [list(self.end_ids if second else self.call_ids) for second in is_second]
        return replies, [[-0.5] * len(reply) for reply in replies]

    def _generate(self, prompts: Any) -> Any:
        started = time.process_time()
        made = super()._generate(prompts)
        self.seconds.append(time.process_time() - started)
        if {len(conversation) for conversation in made[3]} != {3}:
            raise RuntimeError(f"an episode is not a call, its result and an end: {made[3][0]}")
        return made


def trl_tools(size: Size) -> Callable[[], float]:
    torch.set_num_threads(1)
    rows = Dataset.from_list([{"prompt": [{"role": "user", "content": ""}]}] * size.at_once)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(size, rows, Path(folder))
    inputs = [rows[place] for place in range(size.at_once)]

    def measure() -> float:
        trainer.seconds = []
        for _ in range(size.num_episodes // size.at_once):
            trainer._generate_and_score_completions(inputs)
        return sum(trainer.seconds) / size.num_episodes * 1000

    return measure


def make_trainer(size: Size, rows: Dataset, folder: Path) -> ScriptedTrainer:
    """The tiny policy's tokenizer with Qwen3's template, which TRL has a parser for, and a model that never runs."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_policy(folder))
    tokenizer.chat_template = (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text()
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
        )
    )
    args = GRPOConfig(
        output_dir=str(folder), use_cpu=True, report_to="none", per_device_train_batch_size=size.at_once,
        num_generations=size.at_once, max_completion_length=512, disable_tqdm=True, bf16=False,
    )  # fmt: skip
    trainer = ScriptedTrainer(
        model, args=args, train_dataset=rows, processing_class=tokenizer, environment_factory=LookAroundForTrl
    )
    call = f"<tool_call>\n{json.dumps({'name': 'look', 'arguments': CALLED})}\n</tool_call><|im_end|>"
    trainer.call_ids, trainer.end_ids = tokenizer.encode(call), tokenizer.encode(f"{ENDED}<|im_end|>")
    trainer.num_opening_tokens, trainer.seconds = 10**9, []
    return trainer


if __name__ == "__main__":
    run_side(trl_tools)
