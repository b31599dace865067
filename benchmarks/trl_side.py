"""What is TRL's turn of `benchmarks.against_trl`? GRPOTrainer on the tasks and settings of a polygym experiment.

python -m benchmarks.trl_side EXPERIMENT.yaml     (started by `benchmarks.against_trl`)
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import typer
from datasets import Dataset
from transformers import AutoTokenizer, PrinterCallback, TrainerCallback
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from envs.messages import Reply
from envs.registry import make
from rl.chat.chat import load_chat
from rl.config.experiment import ExperimentConfig
from rl.config.read import load_config
from rl.tasks.stream import TaskStream


def main(yaml: Path) -> None:
    config = load_config(yaml, [])
    torch.set_num_threads(int(config.learner.cpus))
    prompts, correct = prompts_and_reward(config)
    config.run_dir.mkdir(parents=True)
    trainer = GRPOTrainer(
        str(config.policy.path),
        reward_funcs=correct,
        args=trl_arguments(config),
        train_dataset=prompts,
        callbacks=[StepWriter(config)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()


def trl_arguments(config: ExperimentConfig) -> GRPOConfig:
    """The experiment in TRL's words."""
    train, rollout = config.train, config.rollout
    rows_per_micro_batch = config.learner.tokens_per_micro_batch // config.policy.max_tokens
    return GRPOConfig(
        output_dir=str(config.run_dir),
        use_cpu=True,
        bf16=config.precision.arithmetic == "bfloat16",
        model_init_kwargs={"dtype": "float32"},  # master weights, as in polygym
        per_device_train_batch_size=rows_per_micro_batch,
        gradient_accumulation_steps=train.num_prompts * train.group_size // rows_per_micro_batch,
        gradient_checkpointing=False,  # polygym computes nothing twice either
        num_generations=train.group_size,
        max_completion_length=rollout.max_reply_tokens,
        temperature=rollout.temperature,
        learning_rate=config.learner.learning_rate,
        lr_scheduler_type="constant",
        max_grad_norm=config.learner.max_grad_norm,
        scale_rewards="none",
        loss_type="dapo",  # divided by the step's tokens, as in polygym
        max_steps=train.num_steps,
        shuffle_dataset=False,
        seed=config.seed,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


def prompts_and_reward(config: ExperimentConfig) -> tuple[Dataset, Callable[..., list[float | None]]]:
    """The tasks that polygym's run trains on, in its order, as a data set and a reward function of TRL.

    Raises `ValueError` when TRL would make other tokens of a prompt than polygym does.
    """
    assert config.policy.path is not None
    chat = load_chat(config.policy.path, config.policy.chat)
    tokenizer = AutoTokenizer.from_pretrained(config.policy.path)
    train, envs, rows = config.train, [], []
    stream = TaskStream(config.environments, config.seed, train.num_prompts)
    for ordinal in range(train.num_steps * train.num_prompts):
        task, env = stream.task(ordinal), make(stream.task(ordinal).env_id)
        messages, _ = env.reset(seed=task.seed, options={**task.options, "split": task.split})
        prompt = [{"role": message.role, "content": message.content} for message in messages]
        ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
        if chat.begin(messages, env.tools, task.budget).prompt_ids != tuple(ids):
            raise ValueError(f"TRL and polygym make different tokens of the prompt {prompt}")
        envs.append(env)
        rows.append({"prompt": prompt, "ordinal": ordinal})

    def correct(completions: list[list[dict[str, str]]], ordinal: list[int], **_: Any) -> list[float | None]:
        return [envs[n].step(Reply(said[0]["content"]))[1] for said, n in zip(completions, ordinal, strict=True)]

    return Dataset.from_list(rows), correct


class StepWriter(TrainerCallback):
    """Appends each step's end and sampled tokens to the run's `metrics.jsonl`."""

    def __init__(self, config: ExperimentConfig) -> None:
        self._file = config.run_dir / "metrics.jsonl"
        self._num_rollouts = config.train.num_prompts * config.train.group_size

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if "completions/mean_length" not in logs:  # the summary at the end
            return
        num_tokens = round(logs["completions/mean_length"] * self._num_rollouts)
        with self._file.open("a") as file:
            file.write(json.dumps({"kind": "train", "time": time.time(), "sampled_tokens": num_tokens}) + "\n")


if __name__ == "__main__":
    typer.run(main)
