"""One side of benchmarks/episodes.py, in a process of its own: prints the CPU milliseconds of an episode, repeated.

Every side plays the same episode: an opening, a reply that calls the tool `look`, its result, a reply that ends it. No
model is sampled: replies are there at once, so that the machinery around them is what is measured.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

NUM_REPEATS = 5
NUM_EPISODES = 512
AT_ONCE = 64
NUM_THREADS = 16
PROMPT, CALLED, ENDED = "Look around.", {"place": "here"}, "done"


class Place:
    """The task's only tool."""

    def look(self, place: str) -> str:
        """Look at a place.

        Args:
            place: Where to look.
        """
        return "nothing"


class LookAround(Place):
    """The task in polygym's form."""

    max_turns = 2

    def reset(self, rng: Any, split: str) -> str:
        return PROMPT

    def score(self, reply: Any) -> float:
        return 1.0


class LookAroundForTrl(Place):
    def reset(self, **_: Any) -> str:
        return PROMPT

    def get_reward(self) -> float:
        return 1.0


def polygym() -> Callable[[], float]:
    """Whole episodes: chat, tokens, environment, records of every token."""
    from envs.messages import Reply, ToolCall
    from rl.chat.chat import load_chat
    from rl.engine.protocol import SampledReply
    from rl.rollouts.env_runner import EnvRunner
    from rl.rollouts.play import Player, play
    from rl.tokens import Tokens
    from tests.conftest import make_config, make_task

    chat = load_chat(tiny_policy(), "nemotron")
    dialogue = chat.begin((), (), "unlimited")
    call = dialogue.reply_ids(Reply("", "I look.", (ToolCall("look", CALLED),)))
    end = dialogue.reply_ids(Reply(ENDED, "I saw."))

    class Lane:
        def __init__(self) -> None:
            self.replies = [end, call]

        async def seated(self) -> None:
            pass

        async def sample(self, prompt_ids: Any, params: Any) -> SampledReply:
            ids = self.replies.pop()
            num = len(ids)
            columns = {"logprob": [-0.5] * num, "version": [0] * num}
            return SampledReply(Tokens.make(ids, [True] * num, columns), "stop")

        def close(self) -> None:
            pass

    async def one(seed: int, slots: asyncio.Semaphore, runner: EnvRunner) -> None:
        async with slots:
            player = Player(make_config(), chat, None, runner, 1.0)  # type: ignore[arg-type]
            task = make_task(seed, "benchmarks.episode_sides:LookAround")
            rollout = await play(player, task, "group", 0, Lane())  # type: ignore[arg-type]
            if rollout.reward != 1.0 or len(rollout.turns) != 2:
                raise RuntimeError(f"{rollout.outcome}: {rollout.error}")

    return lambda: asyncio_ms(one, EnvRunner)


def polygym_environment() -> Callable[[], float]:
    """The environment's side alone: made, reset and stepped with deadlines, results checked."""
    from envs.messages import Reply, ToolCall
    from rl.rollouts.env_runner import EnvRunner
    from rl.rollouts.env_session import EnvSession
    from tests.conftest import make_config, make_task

    config = make_config().rollout

    async def one(seed: int, slots: asyncio.Semaphore, runner: EnvRunner) -> None:
        async with slots:
            episode = EnvSession(make_task(seed, "benchmarks.episode_sides:LookAround"), runner, config)
            await episode.reset()
            await episode.step(Reply("", "", (ToolCall("look", CALLED),)))
            if not (await episode.step(Reply(ENDED)))[1] or episode.reward != 1.0:
                raise RuntimeError("the episode did not end well")
            episode.close()

    return lambda: asyncio_ms(one, EnvRunner)


def skyrl() -> Callable[[], float]:
    """The environment's side alone, made in place and called in a thread pool, as SkyRL's generator does."""
    import skyrl_gym
    from skyrl_gym.envs.base_text_env import BaseTextEnv, BaseTextEnvStepOutput
    from skyrl_gym.tools.core import ToolGroup, tool

    class Looking(ToolGroup):
        def __init__(self) -> None:
            super().__init__(name="looking")

        @tool
        def look(self, place: str) -> str:
            return "nothing"

    class Env(BaseTextEnv):
        def __init__(self) -> None:
            super().__init__()
            self.max_turns = 2
            self.init_tool_groups([Looking()])

        def step(self, action: str) -> BaseTextEnvStepOutput:
            self.turns += 1
            if "<tool_call>" in action:
                call = json.loads(action.split("<tool_call>")[1].split("</tool_call>")[0])
                told = self._execute_tool("looking", call["name"], tuple(call["arguments"].values()))
                said = [{"role": "user", "content": told}]
                return BaseTextEnvStepOutput(observations=said, reward=0.0, done=False, metadata={})
            return BaseTextEnvStepOutput(observations=[], reward=1.0, done=True, metadata={})

    skyrl_gym.register(id="look_around", entry_point=Env)
    call = f"<tool_call>{json.dumps({'name': 'look', 'arguments': CALLED})}</tool_call>"

    async def one(_: int, slots: asyncio.Semaphore, pool: ThreadPoolExecutor) -> None:
        loop = asyncio.get_running_loop()
        async with slots:
            env = skyrl_gym.make("look_around")
            await loop.run_in_executor(pool, env.init, [{"role": "user", "content": PROMPT}])
            await loop.run_in_executor(pool, env.step, call)
            last = await loop.run_in_executor(pool, env.step, ENDED)
            if not last["done"]:
                raise RuntimeError("the episode did not end")
            await loop.run_in_executor(pool, env.close)

    return lambda: asyncio_ms(one, ThreadPoolExecutor)


def trl() -> Callable[[], float]:
    """Whole batches of GRPOTrainer's generation with tools; making, resetting and rewarding the environments is left
    out, so that only its tool loop counts."""
    import torch
    import trl
    from datasets import Dataset
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(tiny_policy())
    tokenizer.chat_template = (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text()
    call = f"<tool_call>\n{json.dumps({'name': 'look', 'arguments': CALLED})}\n</tool_call><|im_end|>"
    call_ids, end_ids = tokenizer.encode(call), tokenizer.encode(f"{ENDED}<|im_end|>")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 8}
    model = Qwen3ForCausalLM(
        Qwen3Config(vocab_size=len(tokenizer), num_attention_heads=2, num_key_value_heads=1, **sizes)
    )
    spent: list[float] = []
    shortest: list[int] = []  # the opening; a longer prompt holds the call and its result

    class Scripted(trl.GRPOTrainer):
        def _generate_single_turn(self, prompt_ids: Any, *_: Any, **__: Any) -> Any:
            shortest[:] = min([*prompt_ids, *([shortest] if shortest else [])], key=len)
            replies = [list(end_ids if len(ids) > len(shortest) else call_ids) for ids in prompt_ids]
            return replies, [[-0.5] * len(reply) for reply in replies]

        def _generate(self, prompts: Any) -> Any:
            started = time.process_time()
            made = super()._generate(prompts)
            spent.append(time.process_time() - started)
            if {len(conversation) for conversation in made[3]} != {3}:
                raise RuntimeError(f"an episode is not a call, its result and an end: {made[3][0]}")
            return made

    args = trl.GRPOConfig(
        output_dir=tempfile.mkdtemp(), use_cpu=True, report_to="none", per_device_train_batch_size=AT_ONCE,
        num_generations=AT_ONCE, max_completion_length=512, disable_tqdm=True, bf16=False,
    )  # fmt: skip
    rows = Dataset.from_list([{"prompt": [{"role": "user", "content": ""}]}] * AT_ONCE)
    trainer = Scripted(
        model, args=args, train_dataset=rows, processing_class=tokenizer, environment_factory=LookAroundForTrl
    )
    inputs = [rows[place] for place in range(AT_ONCE)]

    def measure() -> float:
        spent.clear()
        for _ in range(NUM_EPISODES // AT_ONCE):
            trainer._generate_and_score_completions(inputs)
        return sum(spent) / NUM_EPISODES * 1000

    return measure


def asyncio_ms(one: Callable[..., Any], make_threads: Callable[[int], Any]) -> float:
    """CPU milliseconds an episode, so many at once, on threads of their own."""

    async def all_of_them() -> None:
        slots, threads = asyncio.Semaphore(AT_ONCE), make_threads(NUM_THREADS)
        await asyncio.gather(*(one(seed, slots, threads) for seed in range(NUM_EPISODES)))

    started = time.process_time()
    asyncio.run(all_of_them())
    return (time.process_time() - started) / NUM_EPISODES * 1000


def tiny_policy() -> Path:
    """A folder with the tokenizer of the tiny policy, the same on every side."""
    from rl.chat.formats.nemotron import NemotronFormat
    from rl.config.policy import TinyHybrid
    from rl.policies import build_policy

    folder = Path(tempfile.mkdtemp()) / "policy"
    texts = [f"<|im_start|>user\n{PROMPT}<|im_end|>\n<tool_call> look place here nothing {ENDED}"] * 200
    build_policy(TinyHybrid(), texts, folder, 0, NemotronFormat())
    return folder


SIDES = {side.__name__: side for side in (polygym, trl, polygym_environment, skyrl)}

if __name__ == "__main__":
    measure = SIDES[sys.argv[1]]()
    measure()  # the first round pays for what is made once
    print(json.dumps([measure() for _ in range(NUM_REPEATS)]))
