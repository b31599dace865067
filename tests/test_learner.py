"""The learner: what it computes, what an update does, what it refuses, and that it goes on bit by bit."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, NemotronHConfig, NemotronHForCausalLM

from rl.algorithms.corrections import NonFiniteError
from rl.data_types import Sample
from rl.learner.batching import make_batches
from rl.learner.forward import UnsupportedHeadError, check_head, policy_logprobs
from rl.learner.learner import Learner, LearnerStateError
from rl.learner.policy import IncompleteCheckpointError
from rl.tokens import Tokens
from tests.makers import make_config

VOCAB = 40
LAYERS = {"M": "linear_attention", "E": "moe", "*": "full_attention"}


@pytest.fixture(scope="module")
def hybrid_path(tmp_path_factory) -> Path:
    """A random NemotronH: Mamba-2, LatentMoE, attention, LatentMoE."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = NemotronHConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        layers_block_type=[LAYERS[layer] for layer in "ME*E"],
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        ssm_state_size=16,
        mamba_num_heads=4,
        mamba_head_dim=32,
        n_groups=1,
        chunk_size=8,
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_latent_size=32,
        moe_intermediate_size=32,
        moe_shared_expert_intermediate_size=64,
        initializer_range=0.2,
    )
    path = tmp_path_factory.mktemp("hybrid")
    NemotronHForCausalLM(config).save_pretrained(path)
    return path


def config_with(loss=None, policy=None, rollout=None, num_steps=100, precision="float32", **learner):
    return make_config(
        policy={"path": "unused", **(policy or {})},
        precision=precision,
        train={"num_steps": num_steps},
        loss={"sequence_mismatch_max": 1e9, **(loss or {})},
        rollout=rollout or {},
        learner={"warmup_steps": 0, "learning_rate": 1e-2, **learner},
    )


def load(path):
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def make_sample(token_ids, num_prompt=2, advantage=1.0, logprobs=None):
    num_reply = len(token_ids) - num_prompt
    columns = {"logprob": logprobs or [-3.0] * num_reply, "version": [0] * num_reply}
    reply = Tokens.make(token_ids[num_prompt:], [True] * num_reply, columns)
    return Sample("math/Arithmetic-v0", Tokens.joined([Tokens.unsampled(token_ids[:num_prompt]), reply]), advantage)


def plain_logprobs(model, token_ids, temperature=1.0):
    """Log p of tokens 1.. of one row, by the model's own forward pass."""
    ids = torch.tensor([token_ids])
    with torch.no_grad():
        logits = model(input_ids=ids).logits.float() / temperature
    return logits.log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None]).squeeze(-1)


def on_policy(model, samples):
    """The same samples with the model's own logprobs as the sampler's."""
    return [
        make_sample(
            sample.tokens.ids.tolist(),
            advantage=sample.advantage,
            logprobs=plain_logprobs(model, sample.tokens.ids.tolist())[1:].tolist(),
        )
        for sample in samples
    ]


def uneven_samples(num=6):
    generator = torch.Generator().manual_seed(1)
    return [
        make_sample(torch.randint(0, VOCAB, (5 + 4 * index,), generator=generator).tolist(), advantage=(-1.0) ** index)
        for index in range(num)
    ]


@pytest.fixture(scope="module")
def samples(hybrid_path) -> list[Sample]:
    """Rows of 5 to 25 tokens, as the untrained hybrid would have sampled them."""
    return on_policy(load(hybrid_path), uneven_samples())


def weights(learner):
    return {name: value.clone() for name, value in learner.model.state_dict().items()}


# What the policy says


@pytest.mark.parametrize("pad_id", [None, -1, 10_000])
def test_rows_are_padded_with_a_token_whatever_config_json_calls_padding(pad_id, hybrid_path, tmp_path):
    shutil.copytree(hybrid_path, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"pad_token_id": pad_id}))
    samples = uneven_samples()
    first, other = (Learner(path, config_with(share_prefixes=False)) for path in (hybrid_path, tmp_path))
    assert other.update(samples).grad_norm == first.update(samples).grad_norm


def test_padded_rows_have_the_logprobs_of_unpadded_rows(hybrid_path):
    model = load(hybrid_path)
    samples = uneven_samples()
    (batch,) = make_batches(samples, 10_000, pad_id=0)
    assert not batch.attention_mask_BT.all()
    logprobs_BT, _ = policy_logprobs(model, batch, torch.float32, 1.0, 16)
    for row, sample in enumerate(sorted(samples, key=lambda sample: -len(sample.tokens.ids.tolist()))):
        expected = plain_logprobs(model, sample.tokens.ids.tolist())[1:]
        got = logprobs_BT[row, 2 : len(sample.tokens.ids.tolist())]
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0.0)


def test_the_temperature_divides_the_logits(hybrid_path):
    model = load(hybrid_path)
    (batch,) = make_batches(uneven_samples(1), 100, pad_id=0)
    logprobs_BT, _ = policy_logprobs(model, batch, torch.float32, 0.5, 16)
    expected = plain_logprobs(model, batch.token_ids_BT[0].tolist(), temperature=0.5)
    torch.testing.assert_close(logprobs_BT[0, 2:], expected[1:], atol=1e-5, rtol=0.0)


def test_a_bfloat16_policy_computes_as_its_rounded_checkpoint_and_trains_float32_weights(hybrid_path):
    model = load(hybrid_path)
    (batch,) = make_batches(uneven_samples(1), 100, pad_id=0)
    logprobs_BT, _ = policy_logprobs(model, batch, torch.bfloat16, 1.0, 16)
    rounded = AutoModelForCausalLM.from_pretrained(hybrid_path, dtype=torch.bfloat16).eval()
    for name, parameter in rounded.named_parameters():
        if name.endswith(("gate.weight", "A_log")):
            parameter.data = model.get_parameter(name).data
    expected = plain_logprobs(rounded, batch.token_ids_BT[0].tolist())
    assert torch.equal(logprobs_BT[0, 2:].detach(), expected[1:])
    logprobs_BT.sum().backward()
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}


@pytest.mark.parametrize("key", ["final_logit_softcapping", "lm_head_multiplier"])
def test_a_head_that_is_more_than_a_matrix_is_refused(key):
    check_head(model := LlamaForCausalLM(tiny_llama()))
    setattr(model.config, key, 30.0)
    with pytest.raises(UnsupportedHeadError, match=f"{key} 30"):
        check_head(model)


# What an update does


def test_the_first_update_reports_perfect_agreement_with_on_policy_samples(hybrid_path, samples):
    learner = Learner(hybrid_path, config_with())
    update = learner.update(samples)
    num_loss_tokens = sum(int(sample.tokens.sampled.sum()) for sample in samples)
    signed_tokens = sum(sample.advantage * int(sample.tokens.sampled.sum()) for sample in samples)
    assert (update.policy_version, update.num_loss_tokens) == (1, num_loss_tokens)
    rows = [sample.tokens.ids.tolist() for sample in samples]
    assert update.num_tokens == len({tuple(row[: t + 1]) for row in rows for t in range(len(row))})
    assert update.loss == pytest.approx(-signed_tokens / num_loss_tokens, abs=1e-5)
    assert update.mismatch == pytest.approx(1.0, abs=1e-5)
    assert update.mismatch_kl == pytest.approx(0.0, abs=1e-9)
    fractions = ("masked_fraction", "truncated_weight_fraction", "clip_fraction")
    assert [update.measures[name] for name in fractions] == [0.0, 0.0, 0.0]
    assert 0.0 < update.entropy < math.log(VOCAB)
    assert update.grad_norm > 0.0


def test_the_cut_into_micro_batches_does_not_change_the_update(hybrid_path, samples):
    results = []
    for tokens_per_micro_batch in (8192, 32):
        config = config_with(
            policy={"max_tokens": 32},
            rollout={"max_reply_tokens": 16},
            tokens_per_micro_batch=tokens_per_micro_batch,
        )
        assert len(make_batches(samples, tokens_per_micro_batch, 0)) == (1 if tokens_per_micro_batch > 32 else 5)
        results.append(Learner(hybrid_path, config).update(samples))
    assert results[0].loss == pytest.approx(results[1].loss, abs=1e-6)
    assert results[0].grad_norm == pytest.approx(results[1].grad_norm, rel=1e-4)


def test_rewarded_tokens_become_more_likely(hybrid_path):
    """A bandit: after the prompt 1 2, token 7 earns 1 and every other token 0."""
    learner = Learner(hybrid_path, config_with())
    generator = torch.Generator().manual_seed(0)

    def probabilities():
        with torch.no_grad():
            return learner.model(input_ids=torch.tensor([[1, 2]])).logits[0, -1].softmax(-1)

    before = probabilities()[7].item()
    for _ in range(20):
        policy = probabilities()
        tokens = torch.multinomial(policy, 32, replacement=True, generator=generator).tolist()
        baseline = tokens.count(7) / len(tokens)
        learner.update(
            [
                make_sample([1, 2, token], advantage=(token == 7) - baseline, logprobs=[policy[token].log().item()])
                for token in tokens
            ]
        )
    assert before < 0.3
    assert probabilities()[7].item() > 0.9


@pytest.mark.parametrize("nothing", [[], [make_sample([1, 2, 3], num_prompt=3)]])
def test_without_loss_tokens_only_the_version_grows(hybrid_path, samples, nothing):
    learner = Learner(hybrid_path, config_with(weight_decay=0.1))
    learner.update(samples)
    before = weights(learner)
    update = learner.update(nothing)
    assert update.policy_version == 2
    assert (update.loss, update.grad_norm, update.mismatch, update.num_loss_tokens) == (0.0, 0.0, None, 0)
    assert all(torch.equal(value, before[name]) for name, value in learner.model.state_dict().items())


def test_with_a_learning_rate_of_almost_nothing_nothing_drifts(hybrid_path, samples):
    learner = Learner(hybrid_path, config_with(learning_rate=1e-30, expert_bias_rate=0.0))
    before = weights(learner)
    first, *others = [learner.update(samples) for _ in range(3)]
    for name, value in learner.model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=1e-28)  # weights of 0 do move
    assert {(one.loss, one.mismatch_stale) for one in others} == {(first.loss, first.mismatch)}


def test_a_broken_weight_is_reported_and_nothing_is_trained(hybrid_path, samples):
    learner = Learner(hybrid_path, config_with())
    with torch.no_grad():
        learner.model.lm_head.weight[3, 0] = math.nan
    before = weights(learner)
    with pytest.raises(NonFiniteError, match="logprobs of the learner"):
        learner.update(samples)
    after = learner.model.state_dict()
    assert learner.policy_version == 0
    assert all(torch.equal(before[name].nan_to_num(), after[name].nan_to_num()) for name in before)
    assert all(parameter.grad is None for parameter in learner.model.parameters())


def test_the_reference_penalty_is_zero_at_first_and_grows_as_the_policy_moves(hybrid_path, samples):
    learner = Learner(hybrid_path, config_with(loss={"reference_kl": 0.1}))
    first, second = learner.update(samples), learner.update(samples)
    assert first.measures["reference_kl"] == pytest.approx(0.0, abs=1e-9)
    assert second.measures["reference_kl"] > 1e-5


def test_a_policy_without_experts_and_with_tied_embeddings_trains(tmp_path):
    LlamaForCausalLM(tiny_llama()).save_pretrained(tmp_path)
    learner = Learner(tmp_path, config_with(precision="bf16"))
    before = weights(learner)
    update = learner.update(on_policy(learner.model, uneven_samples()))
    assert update.grad_norm > 0.0
    assert not torch.equal(learner.model.lm_head.weight, before["lm_head.weight"])
    assert learner.model.lm_head.weight is learner.model.model.embed_tokens.weight


def tiny_llama():
    return LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        tie_word_embeddings=True,
    )


# Routers


def test_routers_are_frozen_and_biases_balance_the_load(hybrid_path, samples):
    learner = Learner(hybrid_path, config_with(expert_bias_rate=0.01))
    before = weights(learner)
    learner.update(samples)
    after = learner.model.state_dict()
    gates = [name for name in before if name.endswith("gate.weight")]
    biases = [name for name in before if name.endswith("e_score_correction_bias")]
    assert len(gates) == len(biases) == 2
    assert all(torch.equal(before[name], after[name]) for name in gates)
    for name in biases:
        assert after[name].abs().max().item() == pytest.approx(0.01)
    assert not torch.equal(before["lm_head.weight"], after["lm_head.weight"])


def test_routers_train_when_they_are_not_frozen(hybrid_path, samples):
    learner = Learner(hybrid_path, config_with(freeze_router=False))
    before = weights(learner)
    learner.update(samples)
    name = next(name for name in before if name.endswith("gate.weight"))
    assert not torch.equal(before[name], learner.model.state_dict()[name])


# State


def test_a_saved_learner_goes_on_bit_by_bit(hybrid_path, samples, tmp_path):
    config = config_with(warmup_steps=3, schedule="cosine", weight_decay=0.1)
    learner = Learner(hybrid_path, config)
    for _ in range(2):
        learner.update(samples)
    learner.save_state(tmp_path / "state")
    resumed = Learner(hybrid_path, config)
    model = resumed.model
    resumed.load_state(tmp_path / "state")
    assert resumed.model is model
    assert resumed.policy_version == 2
    assert all(torch.equal(value, weights(learner)[name]) for name, value in weights(resumed).items())
    for _ in range(2):
        undisturbed, continued = learner.update(samples), resumed.update(samples)
        assert (undisturbed.loss, undisturbed.grad_norm) == (continued.loss, continued.grad_norm)
        assert continued.grad_norm > 0.0
    assert all(torch.equal(value, weights(learner)[name]) for name, value in weights(resumed).items())


def test_saved_weights_are_a_checkpoint_that_transformers_loads(hybrid_path, samples, tmp_path):
    learner = Learner(hybrid_path, config_with())
    learner.update(samples)
    learner.save_state(tmp_path)
    loaded = load(tmp_path / "model").state_dict()
    assert loaded.keys() == learner.model.state_dict().keys()
    assert all(torch.equal(value, loaded[name]) for name, value in learner.model.state_dict().items())


def test_a_state_of_another_policy_or_an_empty_folder_is_refused(hybrid_path, tmp_path):
    LlamaForCausalLM(tiny_llama()).save_pretrained(tmp_path / "llama")
    Learner(tmp_path / "llama", config_with()).save_state(tmp_path / "state")
    learner = Learner(hybrid_path, config_with())
    with pytest.raises(LearnerStateError, match="state of another policy"):
        learner.load_state(tmp_path / "state")
    with pytest.raises(LearnerStateError, match="holds no learner state"):
        learner.load_state(tmp_path / "nothing")


def test_a_checkpoint_with_missing_weights_is_refused(hybrid_path, tmp_path):
    tensors = load_file(hybrid_path / "model.safetensors")
    missing = next(name for name in tensors if name.endswith("in_proj.weight"))
    del tensors[missing]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((hybrid_path / "config.json").read_text())
    with pytest.raises(IncompleteCheckpointError, match="1 weights are missing"):
        Learner(tmp_path, config_with())
