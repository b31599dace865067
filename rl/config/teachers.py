"""Which teachers does the policy learn from, and which engines serve them?"""

from pathlib import Path

from rl.config.section import Positive, Section


class TeacherConfig(Section):
    """A teacher of on-policy distillation: a frozen policy that scores the tokens that the trained policy sampled.

    Environments name it in `environments.ID.loss.teacher`. Each of its engines reserves what a worker does
    (`rollout.cpus_per_worker`, `rollout.gpus_per_worker`).
    """

    path: Path
    """Folder with the teacher's Hugging Face checkpoint. It must have the tokenizer of the policy."""
    num_engines: Positive = 1
    """Engines that score, each in a Ray actor of its own."""
