"""Can this checkpoint be trained and served? Found out from its files, before anything is started.

Whatever transformers or vLLM would fill in or leave out without an error is refused here: weights that are missing,
heads and attention that the learner does not compute as the engine does.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from rl.chat.chat import Chat, load_chat
from rl.chat.format import ChatError
from rl.config.adapted import NO_LINEAR_LAYERS, adapted_shapes, is_expert, num_experts
from rl.config.checkpoint_defaults import PRETRAINED_WEIGHTS
from rl.config.checkpoint_files import CheckpointFileError, max_context, num_parameters, read_config, tensor_shapes
from rl.config.errors import ConfigError, Problem
from rl.config.experiment import ExperimentConfig
from rl.config.learner import AdapterConfig
from rl.config.preferences import PairStage

LEFT_OUT = ("final_logit_softcapping", "attn_logit_softcapping", "logits_scaling", "logit_scale")
"""Keys of config.json that the learner does not compute, unless they are null or 1."""
EMBEDDINGS = ("embed_tokens.weight", "embeddings.weight", "wte.weight", "embed_in.weight")
HEADS = ("lm_head.weight", "embed_out.weight")
HIGHEST_RATE = 1e-4
"""Learning rate of AdamW beyond which training all weights of a pretrained checkpoint makes it forget."""
ANOTHER = "choose another checkpoint"
AGAIN = "download or copy the checkpoint again"
Fault = tuple[str, str, str]
"""Key, what is wrong, and how to mend it."""


def check_policy(policy: Path, config: ExperimentConfig) -> None:
    """Check that the folder holds a policy that can be played and trained. Only headers of its weights are read.

    Raises `ConfigError` that lists every problem.
    """

    def found(model: Mapping[str, Any], chat: Chat | None) -> Iterable[Fault]:
        yield from _kind_problems(policy, model)
        yield from _computing_problems(policy, model)
        yield from _model_problems(policy, model, config)
        yield from _weight_problems(policy, model, chat)
        yield from _head_problems(policy, model)
        yield from _dealing_problems(policy, config.learner.expert_parallel)
        yield from _replay_problems(policy, model) if config.learner.routing_replay else ()
        yield from _adapter_problems(policy, config.learner.adapter, "learner.adapter.targets")
        yield from _stage_problems(policy, config, "sft")

    _raise_all(policy, config, found)


def check_stage_policy(config: ExperimentConfig, name: Literal["sft"] | PairStage) -> None:
    """Check that a stage that runs by itself can train the policy at `policy.path`, if it is not built.

    transformers computes what the learner would not, and a reward model needs no language-model head. Raises
    `ConfigError` that lists every problem.
    """
    policy = config.policy.path
    if policy is None:
        return

    def found(model: Mapping[str, Any], chat: Chat | None) -> Iterable[Fault]:
        yield from _kind_problems(policy, model) if name != "reward_model" else ()
        yield from _model_problems(policy, model, config)
        yield from _weight_problems(policy, model, chat)
        yield from _head_problems(policy, model) if name != "reward_model" else ()
        yield from _dealing_problems(policy, config.learner.expert_parallel)
        yield from _stage_problems(policy, config, name)

    _raise_all(policy, config, found)


def _raise_all(
    policy: Path, config: ExperimentConfig, problems: Callable[[Mapping[str, Any], Chat | None], Iterable[Fault]]
) -> None:
    """Raises `ConfigError` with what `problems` finds in config.json and the chat, and if either cannot be read."""
    found: list[Fault] = []
    chat: Chat | None = None
    try:
        chat = load_chat(policy, config.policy.chat)
    except ChatError as error:
        found.append(("policy", str(error), "choose a policy.chat that its tokenizer fits, or give another checkpoint"))
    try:
        found += problems(read_config(policy), chat)
    except CheckpointFileError as error:
        found.append(("policy.path", str(error), AGAIN))
    if found:
        raise ConfigError([Problem(config.place(*key.split(".")), key, wrong, fix) for key, wrong, fix in found])


def check_teachers(policy: Path | None, config: ExperimentConfig) -> None:
    """Check that each teacher is a checkpoint of a context that suffices and, if there is a policy yet, that it has the
    policy's tokenizer. Raises `ConfigError`.
    """
    found: list[Problem] = []
    for name, teacher in config.teachers.items():
        key = f"teachers.{name}.path"
        if fault := _teacher_fault(policy, teacher.path, config):
            fix = "give a checkpoint that was trained from the same one as the policy"
            found.append(Problem(config.place(*key.split(".")), key, fault, fix))
    if found:
        raise ConfigError(found)


def _teacher_fault(policy: Path | None, teacher: Path, config: ExperimentConfig) -> str:
    try:
        context = max_context(read_config(teacher))
        if not tensor_shapes(teacher):
            return f"{teacher} holds no weights (*.safetensors)"
        other = load_chat(teacher, config.policy.chat).token_texts()
        own = load_chat(policy, config.policy.chat).token_texts() if policy else other
    except (ChatError, CheckpointFileError) as error:
        return str(error)
    if context is not None and context < config.policy.max_tokens:
        return f"{teacher} has a context of {context} tokens, less than policy.max_tokens ({config.policy.max_tokens})"
    differs = [number for number, (one, two) in enumerate(zip(own, other, strict=False)) if one != two]
    if differs:
        one, two = own[differs[0]], other[differs[0]]
        return f"{teacher} has another tokenizer: token {differs[0]} is {two!r} there and {one!r} for the policy"
    if len(own) != len(other):
        return f"{teacher} has another tokenizer: {len(other)} tokens, and the policy has {len(own)}"
    return ""


def rate_warning(policy: Path, key: str, rate: float) -> str:
    """A warning if the learning rate of this key would ruin a pretrained checkpoint; otherwise empty."""
    if rate <= HIGHEST_RATE or num_parameters(policy) < PRETRAINED_WEIGHTS:
        return ""
    return (
        f"warning: {key} is {rate:g}: training all weights of a pretrained checkpoint at more than {HIGHEST_RATE:g}"
        f" makes it forget what it knows (`python -m rl explain {key}`)"
    )


def _kind_problems(policy: Path, model: Mapping[str, Any]) -> Iterable[Fault]:
    for name in model.get("architectures") or ():
        if not str(name).endswith(("ForCausalLM", "LMHeadModel")):
            yield "policy.path", f"{policy} is a {name}; only causal language models of text are trained", ANOTHER


def _computing_problems(policy: Path, model: Mapping[str, Any]) -> Iterable[Fault]:
    for key in LEFT_OUT:
        if model.get(key) not in (None, 1, 1.0):
            yield "policy.path", f"{policy}: the learner does not compute {key} ({model[key]})", ANOTHER


def _model_problems(policy: Path, model: Mapping[str, Any], config: ExperimentConfig) -> Iterable[Fault]:
    """What in config.json rules a model out, whatever trains it."""
    if (quantised := model.get("quantization_config")) is not None:
        method = quantised.get("quant_method") if isinstance(quantised, Mapping) else quantised
        fix = "give the checkpoint before quantisation, and choose `precision: nvfp4` to train a quantised policy"
        yield "policy.path", f"{policy} holds quantised weights ({method}), which cannot be trained", fix
    context = max_context(model)
    if context is not None and config.policy.max_tokens > context:
        wrong = f"{config.policy.max_tokens} tokens are more than the checkpoint's context of {context}"
        yield "policy.max_tokens", wrong, f"set it to {context} or less, and rollout.max_reply_tokens below that"


def _stage_problems(policy: Path, config: ExperimentConfig, name: Literal["sft"] | PairStage) -> Iterable[Fault]:
    stage = getattr(config, name)
    yield from _adapter_problems(policy, getattr(stage, "adapter", None), f"{name}.adapter.targets")


def _adapter_problems(policy: Path, adapter: AdapterConfig | None, key: str) -> Iterable[Fault]:
    """If the adapter's targets fit no layer of the checkpoint that can have one."""
    if adapter is None:
        return
    layers, shapes = adapted_shapes(policy, adapter), tensor_shapes(policy)
    if adapter.experts and shapes and not any(map(is_expert, shapes)):
        yield key.replace("targets", "experts"), f"{policy} has no routed experts", "remove it"
    named = ", ".join(adapter.targets)
    if others := [name for name in layers if name.rpartition(".")[2] in NO_LINEAR_LAYERS]:
        fix = "name linear layers between them, such as [qkvo]_proj"
        yield key, f"{named} match {others[0]}; embeddings, heads and convolutions cannot have an adapter", fix
    elif layers and all(map(is_expert, layers)) and not adapter.experts:
        wrong = f"{named} match only routed experts, which are stacked in one tensor"
        yield key, wrong, "set adapter.experts: true, or add layers outside of the experts, such as [qkvo]_proj"
    elif not layers and shapes and not adapter.experts:
        kinds = {name.split(".")[-2] for name in shapes if name.endswith(".weight") and len(shapes[name]) == 2}
        fix = f"choose among its linear layers: {', '.join(sorted(kinds.difference(NO_LINEAR_LAYERS)))}"
        yield key, f"{named} match no layer of {policy}", fix


def _dealing_problems(policy: Path, expert_parallel: int) -> Iterable[Fault]:
    """If the experts cannot be dealt to so many ranks."""
    if expert_parallel == 1:
        return
    key, num = "learner.expert_parallel", num_experts(policy)
    if not num:
        yield key, f"{policy} has no routed experts", "remove it"
    elif num % expert_parallel:
        wrong = f"{policy} has {num} experts a layer, which {expert_parallel} ranks cannot share evenly"
        yield key, wrong, f"choose a divisor of {num}"


def _replay_problems(policy: Path, model: Mapping[str, Any]) -> Iterable[Fault]:
    """If there are no choices of experts that could be recorded."""
    key = "learner.routing_replay"
    if not num_experts(policy):
        yield key, f"{policy} has no routed experts", "remove it"
    elif model.get("num_experts_per_tok") == 1:
        wrong = f"{policy} sends each token to one expert, whose record could not be told from none"
        yield key, wrong, "remove it"


def _weight_problems(policy: Path, model: Mapping[str, Any], chat: Chat | None) -> Iterable[Fault]:
    """What is missing among the weights. Raises `CheckpointFileError`."""
    shapes = tensor_shapes(policy)
    if not shapes:
        if not list(policy.glob("*.bin")):
            yield "policy.path", f"{policy} holds no weights (*.safetensors)", AGAIN
        return
    layers = {int(found[1]) for name in shapes if (found := re.search(r"(?:^|\.)layers\.(\d+)\.", name))}
    expected = model.get("num_hidden_layers")
    if layers and isinstance(expected, int) and (missing := sorted(set(range(expected)) - layers)):
        yield "policy.path", f"{policy} holds no weights of {len(missing)} layers, first {missing[0]}", AGAIN
    embeddings = next((name for name in shapes if name.endswith(EMBEDDINGS)), None)
    if embeddings is None:
        return
    if chat is not None and (rows := shapes[embeddings][0]) < chat.num_tokens:
        wrong = f"{policy}: the tokenizer has {chat.num_tokens} tokens, but the embeddings have only {rows} rows"
        yield "policy.path", wrong, "give the tokenizer that the weights were trained with, or resize the embeddings"


def _head_problems(policy: Path, model: Mapping[str, Any]) -> Iterable[Fault]:
    """Raises `CheckpointFileError`."""
    shapes = tensor_shapes(policy)
    has_embeddings = any(name.endswith(EMBEDDINGS) for name in shapes)
    is_apart = has_embeddings and model.get("tie_word_embeddings") is False
    if is_apart and not any(name.endswith(HEADS) for name in shapes):
        yield "policy.path", f"{policy} holds no weights of the head, and its embeddings are not tied to one", AGAIN
