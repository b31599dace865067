"""Logprobs from hidden states, a chunk of tokens at a time: values, gradients and memory."""

import pytest
import torch

from rl.learner.logprobs import token_logprobs


def head_case(num_rows=3, num_tokens=17, width=8, vocab=50):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(num_rows, num_tokens, width, generator=generator).requires_grad_()
    weight = torch.randn(vocab, width, generator=generator).requires_grad_()
    token_ids = torch.randint(0, vocab, (num_rows, num_tokens), generator=generator)
    mask = torch.rand(num_rows, num_tokens, generator=generator) < 0.6
    mask[:, 0] = False
    return hidden, weight, token_ids, mask


@pytest.mark.parametrize("chunk_tokens", [1, 7, 1000])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_chunked_logprobs_are_those_of_a_plain_log_softmax_with_their_gradients(chunk_tokens, temperature):
    hidden, weight, token_ids, mask = head_case()
    logprobs, entropy = token_logprobs(hidden, weight, token_ids, mask, temperature, chunk_tokens)
    plain = ((hidden @ weight.T) / temperature).log_softmax(-1)[:, :-1]
    expected = torch.zeros(mask.shape)
    expected[:, 1:] = plain.gather(-1, token_ids[:, 1:, None]).squeeze(-1)
    expected_entropy = torch.zeros(mask.shape)
    expected_entropy[:, 1:] = -(plain.exp() * plain).sum(-1)
    torch.testing.assert_close(logprobs, expected * mask, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(entropy, expected_entropy * mask, atol=1e-5, rtol=1e-6)
    weights = torch.linspace(-1, 1, mask.numel()).reshape(mask.shape)
    for mine, plain in ((logprobs, expected), (entropy, expected_entropy)):
        ours = torch.autograd.grad((mine * weights).sum(), (hidden, weight), retain_graph=True)
        theirs = torch.autograd.grad((plain * mask * weights).sum(), (hidden, weight), retain_graph=True)
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_logits_never_exist_for_more_tokens_than_a_chunk():
    from torch.utils._python_dispatch import TorchDispatchMode

    hidden, weight, token_ids, mask = head_case(num_rows=4, num_tokens=64, vocab=50)
    widest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal widest
            result = func(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, (tuple, list)) else [result]:
                if isinstance(tensor, torch.Tensor) and tensor.shape[-1:] == (50,):
                    widest = max(widest, tensor.numel() // 50)
            return result

    saved = []
    with Watch(), torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t, lambda t: t):
        logprobs, _ = token_logprobs(hidden, weight, token_ids, mask, temperature=1.0, chunk_tokens=10)
        logprobs.sum().backward()
    assert int(mask.sum()) > 100
    assert widest == 10
    assert not [shape for shape in saved if shape == (10, 50)]


def test_no_loss_tokens_give_zeros():
    hidden, weight, token_ids, mask = head_case()
    logprobs, entropy = token_logprobs(hidden, weight, token_ids, torch.zeros_like(mask), 1.0, 10)
    assert logprobs.shape == entropy.shape == mask.shape
    assert not logprobs.any() and not entropy.any()


def test_the_first_token_of_a_row_cannot_be_in_the_loss():
    hidden, weight, token_ids, mask = head_case()
    mask[1, 0] = True
    with pytest.raises(ValueError, match="first token of a row"):
        token_logprobs(hidden, weight, token_ids, mask, 1.0, 10)
