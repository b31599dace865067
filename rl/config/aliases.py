"""What are keys called here that TRL, verl, NeMo RL and others, or earlier versions, call by another name?"""

_OTHER_NAMES = {
    "learner.learning_rate sft.learning_rate": "lr actor_lr",
    "learner.warmup_steps sft.warmup_steps": "warmup_ratio lr_warmup_steps",
    "learner.schedule": "lr_scheduler lr_scheduler_type lr_decay_style",
    "learner.max_grad_norm": "grad_clip clip_grad gradient_clipping",
    "learner.activation_checkpointing": "gradient_checkpointing enable_gradient_checkpointing",
    "train.num_steps sft.num_steps": "max_steps max_num_steps total_training_steps",
    "train.num_steps sft.num_epochs": "epochs num_train_epochs total_epochs max_num_epochs",
    "train.num_steps": "num_epochs",
    "train.num_prompts sft.batch_size": (
        "batch_size train_batch_size global_batch_size train_global_batch_size rollout_batch_size num_prompts_per_step"
    ),
    "learner.tokens_per_micro_batch": (
        "per_device_train_batch_size micro_batch_size train_micro_batch_size gradient_accumulation_steps "
        "ppo_micro_batch_size_per_gpu ppo_max_token_len_per_gpu packing packing_strategy sequence_packing padding_free"
    ),
    "train.group_size": "num_generations num_generations_per_prompt n_samples_per_prompt rollouts_per_example n",
    "rollout.max_reply_tokens": (
        "max_completion_length max_new_tokens max_response_length generate_max_len response_length"
    ),
    "policy.max_tokens": (
        "max_length max_seq_length max_seq_len max_model_len max_prompt_length prompt_max_len max_total_sequence_length"
    ),
    "dpo.sft_coefficient": "rpo_alpha sft_loss_weight sft_loss_coef",
    "loss.reference_kl": "beta kl_coef kl_loss_coef init_kl_coef kl_penalty reference_policy_kl_penalty",
    "loss.clip_low loss.clip_high": "epsilon clip_ratio cliprange",
    "loss.clip_low": "epsilon_low clip_ratio_low ratio_clip_min",
    "loss.clip_high": "epsilon_high clip_ratio_high ratio_clip_max",
    "loss.scale_by_std": "scale_rewards normalize_rewards norm_adv_by_std_in_grpo",
    "loss.algorithm": "adv_estimator loss_type algo",
    "loss.importance_weight_max": "vllm_importance_sampling_cap tis_imp_ratio_cap truncated_importance_sampling_ratio",
    "train.max_staleness": "max_trajectory_age_steps staleness_threshold max_async_level",
    "policy.path": "model model_name model_path model_name_or_path base_model pretrain actor",
    "precision.format": "dtype torch_dtype model_dtype bf16 fp16",
    "policy.chat": "chat_template chat_template_path",
    "learner.adapter sft.adapter": "lora peft peft_config use_peft",
    "learner.adapter.rank sft.adapter.rank": "lora_r lora_rank lora_dim r",
    "learner.adapter.alpha sft.adapter.alpha": "lora_alpha",
    "learner.adapter.targets sft.adapter.targets": "lora_target_modules target_modules",
    "rollout.gpu_memory_share": "gpu_memory_utilization vllm_gpu_memory_utilization",
    "rollout.gpus_per_worker": "tensor_parallel_size tensor_model_parallel_size vllm_tensor_parallel_size",
    "rollout.max_in_flight": "max_num_seqs max_concurrent",
    "rollout.sleep": "sleep_level vllm_enable_sleep_mode free_cache_engine",
    "sft.data": "dataset dataset_name train_files train_file data_path",
    "environments": "env envs environment reward_funcs",
    "environments.*.budget": "thinking_budget thinking_token_budget reasoning_budget",
    "run_dir": "output_dir save_dir checkpoint_dir default_local_dir",
    "train.checkpoint_every": "save_steps save_freq save_period save_interval",
    "train.keep_checkpoints": "save_total_limit keep_top_k max_actor_ckpt_to_keep",
    "evaluation.every": "eval_steps eval_interval val_period test_freq",
    "tracking": "report_to logger logging wandb",
    "seed": "random_seed data_seed",
    "canaries.mismatch.warn": "mismatch_warn",
    "canaries.mismatch.stop": "mismatch_stop",
    "canaries.truncated_rows.warn": "truncated_warn",
    "canaries.masked_rows.stop": "masked_rows_stop",
}
"""By the keys that mean the same or come nearest: names of other projects, and of earlier versions."""

ALIASES = {name: tuple(keys.split()) for keys, names in _OTHER_NAMES.items() for name in names.split()}
"""Only suggested, never accepted."""


def counterparts(key: str) -> list[str]:
    """The known keys that this key of another project means, those of its own section if it names one."""
    parts = key.lower().replace("-", "_").split(".")
    found = ALIASES.get(parts[-1], ())
    return [known for known in found if known.split(".")[0] == parts[0]] or list(found)
