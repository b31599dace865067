"""What is TRL's turn of `benchmarks.supervised`? SFTTrainer with its own batches: random rows, padded to the longest.

python -m benchmarks.trl_stage EXPERIMENT.yaml     (started by `benchmarks.supervised`)
"""

import json
import time
from pathlib import Path
from typing import Any

import torch
import typer
from datasets import Dataset
from transformers import AutoModelForCausalLM, TrainerCallback
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling, SFTTrainer

from rl.chat.chat import load_chat
from rl.config.read import load_config
from sft.data import token_rows, training_conversations
from sft.train import trl_config


def main(experiment: Path) -> None:
    config = load_config(experiment, [])
    assert config.sft is not None and config.sft.num_steps is not None and config.policy.path is not None
    torch.set_num_threads(int(config.learner.cpus))
    chat = load_chat(config.policy.path, config.policy.chat)
    rows = token_rows(training_conversations(config), chat, config)
    arguments = trl_config(config, config.run_dir / "trl", config.sft.num_steps, 1, torch.device("cpu"))
    arguments.train_sampling_strategy = "random"
    arguments.per_device_train_batch_size = config.sft.batch_size

    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(config.policy.path, dtype=torch.float32),
        args=arguments,
        train_dataset=Dataset.from_dict({"input_ids": [r.input_ids for r in rows], "labels": [r.labels for r in rows]}),
        data_collator=DataCollatorForLanguageModeling(pad_token_id=chat.pad_id),
        callbacks=[StepWriter(config.run_dir)],
    )
    trainer.train()


class StepWriter(TrainerCallback):
    """Appends each step's tokens, seconds and loss to `steps.jsonl`."""

    def __init__(self, run_dir: Path) -> None:
        self._file = run_dir / "steps.jsonl"
        self._num_tokens = 0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._last = time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if "loss" not in logs:  # the summary at the end
            return
        now, num_tokens = time.monotonic(), int(logs["num_tokens"])
        step = {"tokens": num_tokens - self._num_tokens, "seconds": now - self._last, "loss": logs["loss"]}
        with self._file.open("a") as file:
            file.write(json.dumps(step) + "\n")
        self._last, self._num_tokens = now, num_tokens


if __name__ == "__main__":
    typer.run(main)
