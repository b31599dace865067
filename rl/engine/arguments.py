"""Which engine arguments does vLLM get from the experiment? This module does not import vLLM."""

from typing import Any

from rl.config.experiment import ExperimentConfig
from rl.config.rollout import RolloutConfig

MAX_TOKENS_PER_STEP = 8192
"""Tokens of one engine step, prompts included; vLLM's default on GPUs."""
SCORED_TOKENS = 2048
"""Tokens of one step of an engine that scores rows, whose logits are in memory at once."""
CPU_KV_CACHE_GIB = 0.5
GPU_MEMORY_SHARE = 0.9
"""Share of an engine's part of a card that vLLM may use; the rest is for other libraries."""
ENVIRONMENT = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_USE_V2_MODEL_RUNNER": "0"}
"""Environment variables of every process that runs vLLM, set before it is imported. Threads are not bound to cores. On
GPUs too, vLLM's first model runner serves: the second, their default, takes logits processors of another kind."""

Arguments = dict[str, Any]
"""Of vLLM\'s `EngineArgs`, by name."""


def engine_arguments(config: ExperimentConfig, is_cpu: bool) -> Arguments:
    """Arguments of `vllm.EngineArgs`, except the model, the token columns and the weight transfer."""
    return {
        **_shared(config.policy.max_tokens, config.rollout, is_cpu),
        "dtype": config.precision.arithmetic,
        "seed": config.seed,
        "skip_tokenizer_init": True,
        "generation_config": "vllm",  # no sampling defaults from the checkpoint
    }


def prefix_caching(is_cpu: bool) -> Arguments:
    """For policies whose layers all are attention: Mamba's states are kept for blocks longer than most prompts.

    Only full blocks are found again, and on CPUs vLLM makes them as long as some prompts.
    """
    return {"enable_prefix_caching": True, **({"block_size": 32} if is_cpu else {})}


def endpoint_arguments(max_tokens: int, rollout: RolloutConfig, is_cpu: bool) -> Arguments:
    """Of an endpoint, which samples as the engines of a run do; dtype and sampling defaults are the checkpoint's."""
    return _shared(max_tokens, rollout, is_cpu)


def _shared(max_tokens: int, rollout: RolloutConfig, is_cpu: bool) -> Arguments:
    return {
        "max_model_len": max_tokens,
        "max_num_seqs": rollout.max_in_flight,
        "enable_chunked_prefill": False,  # a split prompt rewinds its generator, which CPU generators cannot
        "max_num_batched_tokens": max(max_tokens, MAX_TOKENS_PER_STEP),
        "enable_prefix_caching": False,  # but see `prefix_caching`
        "mamba_ssm_cache_dtype": "float32",
        "async_scheduling": False,  # else tokens of a step arrive after the next step, under another version
        "logits_processors": ["rl.engine.budget_processor:ThinkingBudget"],
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        **(_on_cpu(rollout) if is_cpu else _on_gpu(rollout)),
    }


def _on_cpu(rollout: RolloutConfig) -> Arguments:
    kv_cache_gib = rollout.kv_cache_gib or CPU_KV_CACHE_GIB
    return {"enforce_eager": True, "kv_cache_memory_bytes": int(kv_cache_gib * 2**30)}


def _on_gpu(rollout: RolloutConfig) -> Arguments:
    """Engines that share a card divide its memory; an engine with several cards uses each of them alone."""
    share = rollout.gpu_memory_share or GPU_MEMORY_SHARE * min(1.0, rollout.gpus_per_worker or 1.0)
    arguments: Arguments = {"gpu_memory_utilization": share}
    if rollout.gpus_per_worker > 1:
        # The actor holds all its cards, so vLLM's own processes serve them; it would ask Ray for more actors.
        arguments |= {"tensor_parallel_size": int(rollout.gpus_per_worker), "distributed_executor_backend": "mp"}
    if rollout.sleep:
        arguments["enable_sleep_mode"] = True
    if rollout.kv_cache_gib is not None:
        arguments["kv_cache_memory_bytes"] = int(rollout.kv_cache_gib * 2**30)
    return arguments
