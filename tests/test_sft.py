import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from envs.messages import Message, Reply
from envs.text_env import TextEnv
from rl.chat.chat import load_chat
from rl.chat.format import conversation_text
from rl.chat.formats.nemotron import NemotronFormat
from rl.config.experiment import ExperimentConfig
from rl.config.policy import TinyHybrid
from rl.policies import build_policy
from rl.precision.folded import FoldedWeights
from rl.precision.formats.nvfp4 import Nvfp4
from rl.precision.nvfp4 import dequantise, quantise
from sft.data import gold_conversations, token_rows
from sft.precision import FoldedSteps
from sft.rows import Conversation, SftDataError

SIZES = {
    "pattern": "M*E", "hidden_size": 32, "num_heads": 1, "num_experts": 4, "latent_size": 16, "expert_size": 32,
    "shared_expert_size": 32, "vocab_size": 384,
}  # fmt: skip


class Echo(TextEnv):
    """Say the word again; what the environment says after the last reply must not be trained."""

    def reset(self, *, seed=None, options=None) -> tuple[tuple[Message, ...], dict]:
        super().reset(seed=seed)
        split, _ = self.read_options(options)
        assert split == "train"
        self._word = "abcdefgh"[int(self.np_random.integers(8))]
        return (Message("user", f"say {self._word}"),), {}

    def gold_reply(self):
        return Reply(self._word, f"it is {self._word}")

    def step(self, action):
        return (Message("user", "thanks"),), float(action.text == self._word), True, False, {}


class Halfway(Echo):
    """A dialogue that has begun: its first reply belongs to the task."""

    def reset(self, *, seed=None, options=None):
        asked, info = super().reset(seed=seed, options=options)
        return (Message("user", "hello"), Message("assistant", "wrong", "I may err"), *asked), info


def experiment(tmp_path, **sft) -> ExperimentConfig:
    return ExperimentConfig.model_validate(
        {
            "run_dir": str(tmp_path / "run"),
            "seed": 3,
            "policy": {"build": SIZES},
            "environments": {"tests.test_sft:Echo": {}},
            "sft": {"num_steps": 5, "num_conversations": 200, "batch_size": 8, "warmup_steps": 1, **sft},
            "train": {"num_steps": 1},
        }
    )


def with_max_tokens(config: ExperimentConfig, max_tokens: int) -> ExperimentConfig:
    return config.model_copy(update={"policy": config.policy.model_copy(update={"max_tokens": max_tokens})})


def sizes(config: ExperimentConfig) -> TinyHybrid:
    assert config.policy.build is not None
    return config.policy.build


def build_for(config: ExperimentConfig, conversations, folder) -> None:
    format = NemotronFormat()
    texts = [conversation_text(format, c.messages, c.tools, c.budget) for c in conversations]
    build_policy(sizes(config), texts, folder, 0, format)


def test_gold_conversations_are_a_function_of_the_configuration(tmp_path):
    config = experiment(tmp_path, no_thinking_share=0.25)
    conversations = gold_conversations(config)
    assert conversations == gold_conversations(config)
    assert len(conversations) == 200
    off = [c for c in conversations if c.budget == "off"]
    assert 30 < len(off) < 70
    assert all(not message.reasoning for c in off for message in c.messages)
    assert all(c.messages[-1].reasoning for c in conversations if c.budget == "unlimited")
    assert all(c.messages[-1].role == "assistant" for c in conversations)


def test_environments_are_drawn_by_weight(tmp_path):
    config = experiment(tmp_path).model_dump()
    config["environments"] = {
        "tests.test_sft:Echo": {"weight": 3.0, "budget": "off"},
        "math/Arithmetic-v0": {"weight": 1.0},
    }
    conversations = gold_conversations(ExperimentConfig.model_validate(config))
    echo = [c for c in conversations if c.source.startswith("tests.test_sft:Echo")]
    assert 130 < len(echo) < 170
    assert {c.budget for c in echo} == {"off"}


def test_labels_are_exactly_what_the_assistant_says(tmp_path):
    config = experiment(tmp_path)
    conversations = gold_conversations(config)
    build_for(config, conversations, tmp_path)
    chat = load_chat(tmp_path, "nemotron")
    rows = token_rows(conversations, chat, config)
    for row, conversation in zip(rows, conversations, strict=True):
        reply = conversation.messages[-1]
        said = f"{reply.reasoning}\n</think>\n{reply.content}" if reply.reasoning else reply.content
        trained = [label for label in row.labels if label >= 0]
        assert chat.text(trained) == said + "<|im_end|>"
        assert list(row.input_ids[-len(trained) :]) == trained
    shortest = min(map(len, rows))
    assert token_rows(conversations, chat, with_max_tokens(config, shortest)) == [r for r in rows if len(r) == shortest]
    with pytest.raises(SftDataError, match="all 200 conversations are longer"):
        token_rows(conversations, chat, with_max_tokens(config, 3))


def test_truncated_conversations_tell_their_budget_and_do_not_train_what_the_engine_would_force(tmp_path):
    config = experiment(tmp_path, truncated_share=1.0, no_thinking_share=0.0)
    conversations = gold_conversations(config)
    build_for(config, conversations, tmp_path)
    chat = load_chat(tmp_path, "nemotron")
    no_grace = config.model_copy(update={"budget": config.budget.model_copy(update={"grace_tokens": 0})})
    rows = token_rows(conversations, chat, no_grace)
    for row, conversation in zip(rows, conversations, strict=True):
        assert "{thinking token budget: " in chat.text(row.input_ids)
        reply = conversation.messages[-1]
        trained = chat.text([label for label in row.labels if label >= 0])
        reasoning, _, answer = trained.partition(f"\n{reply.content}<|im_end|>")
        assert reply.reasoning.startswith(reasoning) and len(reasoning) <= len(reply.reasoning)
        assert trained.endswith(f"\n{reply.content}<|im_end|>") and not answer
        assert "</think>" not in trained


def test_a_quantised_policy_is_taught_with_folded_weights_and_saved_with_its_masters():
    layer = torch.nn.Linear(32, 16, bias=False)
    model = torch.nn.Sequential(layer)
    master = layer.weight.detach().clone()
    folded = FoldedWeights(model, Nvfp4())
    callback = FoldedSteps(folded)
    callback.on_step_begin()
    assert not torch.equal(layer.weight, master)
    assert torch.equal(layer.weight, dequantise(quantise(master, Nvfp4())))
    callback.on_pre_optimizer_step()
    assert torch.equal(layer.weight, master)
    with torch.no_grad():
        layer.weight.mul_(2)
    callback.on_optimizer_step()
    callback.on_step_begin()
    assert torch.equal(layer.weight, dequantise(quantise(2 * master, Nvfp4())))


def test_a_conversation_in_the_wrong_order_names_its_row(tmp_path):
    build_policy(sizes(experiment(tmp_path)), ["text"], tmp_path, 0, NemotronFormat())
    conversation = Conversation((Message("assistant", "x"),), (), "off", "a.jsonl, row 7")
    with pytest.raises(SftDataError, match=r"row 7: .*must begin"):
        token_rows([conversation], load_chat(tmp_path, "nemotron"), experiment(tmp_path))


@pytest.mark.slow
def test_five_steps_lower_the_loss_and_leave_a_checkpoint_that_loads(tmp_path):
    from sft.train import run

    config = experiment(tmp_path)
    folder = run(config)
    assert folder == config.run_dir / "sft"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert all(line["tokens"] > 0 for line in lines)
    before, after = (AutoModelForCausalLM.from_pretrained(path) for path in (config.run_dir / "policy", folder))
    assert not torch.equal(before.lm_head.weight, after.lm_head.weight)
    assert load_chat(folder, "nemotron").stop_ids == load_chat(config.run_dir / "policy", "nemotron").stop_ids
    assert sorted(path.name for path in config.run_dir.iterdir()) == ["policy", "run.log", "sft", "tensorboard"]


@pytest.mark.slow
def test_the_same_seed_trains_the_same_weights(tmp_path):
    from sft.train import run

    first = (run(experiment(tmp_path / "a")) / "model.safetensors").read_bytes()
    assert first == (run(experiment(tmp_path / "b")) / "model.safetensors").read_bytes()


def test_in_a_share_of_conversations_the_assistant_gives_up(tmp_path):
    config = experiment(tmp_path, giving_up_share=0.25, no_thinking_share=0.0)
    last = [conversation.messages[-1] for conversation in gold_conversations(config)]
    gave_up = [message for message in last if message.content == "I do not know."]
    assert 30 < len(gave_up) < 70  # of 200
    assert not any(message.reasoning for message in gave_up)
    assert all(len(message.content) == 1 for message in last if message not in gave_up)


def test_replies_of_an_opening_are_read_and_not_trained(tmp_path):
    tree = experiment(tmp_path, giving_up_share=0.25, truncated_share=0.5, no_thinking_share=0.0).model_dump()
    config = ExperimentConfig.model_validate({**tree, "environments": {"tests.test_sft:Halfway": {}}})
    conversations = gold_conversations(config)
    gave_up = [one for one in conversations if one.messages[-1].content == "I do not know."]
    assert 30 < len(gave_up) < 70
    assert all(len(one.messages) == 4 and one.untrained == {1} for one in conversations)
    assert all(one.cut_at is None for one in gave_up) and any(one.cut_at is not None for one in conversations)
    build_for(config, conversations, tmp_path)
    chat = load_chat(tmp_path, "nemotron")
    rows = token_rows(conversations, chat, config)
    assert not any("wrong" in chat.text([label for label in row.labels if label >= 0]) for row in rows)
