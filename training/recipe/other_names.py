"""Settings under the names that other trainers have for them, which no edit distance would find.

Those are transformers' and PEFT's own, what recipes of TRL, axolotl, LLaMA-Factory, unsloth and MLX call them, and what
``datasets`` and pandas call those of CSV files.
"""

from __future__ import annotations

from collections.abc import Mapping

CALLED: Mapping[str, tuple[str, ...]] = {
    "name": ("run_name", "wandb_name", "wandb_run_id"),
    "base": (
        "base_model", "model", "model_name", "model_name_or_path", "model_id", "base_model_name_or_path", "checkpoint",
    ),
    "revision": ("model_revision", "revision_of_model", "base_model_revision"),
    "from": ("parent", "from_", "lora_model_dir", "adapter_name_or_path", "resume_adapter_file"),
    "method": ("adapter", "finetuning_type", "fine_tune_type", "peft_type", "peft_method"),
    "method: rslora": ("use_rslora", "peft_use_rslora", "lora_use_rslora"),
    "method: dora": ("use_dora", "peft_use_dora", "lora_use_dora"),
    "quantization": ("quantization_bit", "bnb_4bit_quant_type", "quantize_base"),
    "quantization: nf4": ("load_in_4bit",),
    "quantization: int8": ("load_in_8bit",),
    "double_quantization": ("use_bnb_nested_quant", "bnb_4bit_use_double_quant"),
    "dtype: bfloat16": ("bf16",),
    "dtype: float16": ("fp16",),
    "dtype": ("torch_dtype", "compute_dtype", "bnb_4bit_compute_dtype"),
    "data.train": (
        "dataset", "datasets", "dataset_name", "dataset_path", "dataset_id", "train_file", "train_data", "path",
    ),
    "data.test": ("test_datasets", "eval_dataset", "test_file", "eval_data"),
    "data.subset": ("dataset_config", "dataset_config_name", "subset_name"),
    "data.train_split": ("split", "dataset_train_split", "max_samples"),
    "data.test_split": ("dataset_test_split",),
    "data.test_size": ("val_set_size", "val_size", "validation_split_percentage"),
    "data.columns": (
        "type", "dataset_text_field", "text_column", "field", "field_messages", "field_instruction", "field_input",
        "field_output", "field_human", "field_model", "field_chosen", "field_rejected", "message_property_mappings",
        "message_field_role", "message_field_content", "prompt_column", "response_column", "formatting",
    ),
    "data.header": ("column_names", "names", "header_names", "fieldnames"),
    "data.separator": ("sep", "delimiter"),
    "data.label_separator": ("label_delimiter", "label_sep"),
    "data.encoding": ("file_encoding",),
    "lora": ("lora_parameters", "lora_config", "peft_config"),
    "lora.rank": ("r", "lora_r", "lora_rank", "peft_lora_r"),
    "lora.alpha": ("lora_alpha", "peft_lora_alpha"),
    "lora.dropout": ("lora_dropout", "peft_lora_dropout"),
    "lora.targets": ("target_modules", "lora_target_modules", "lora_target", "lora_target_linear", "lora_attn_modules"),
    "lora.exclude": ("exclude_modules",),
    "lora.parameters": ("target_parameters", "lora_target_parameters"),
    "lora.layers": ("layers_to_transform", "peft_layers_to_transform", "num_layers", "lora_layers"),
    "lora.init": ("init_lora_weights", "peft_init_lora_weights", "pissa_init", "loftq_config"),
    "tokens.add": ("special_tokens", "add_tokens", "additional_special_tokens", "new_special_tokens"),
    "tokens.end": ("eos_token",),
    "training.epochs": ("num_train_epochs", "num_epochs", "n_epochs"),
    "training.max_steps": ("iters", "max_iters", "num_steps"),
    "training.batch_size": ("per_device_train_batch_size", "micro_batch_size", "train_batch_size"),
    "training.gradient_accumulation": ("gradient_accumulation_steps", "grad_accumulation_steps", "accumulation_steps"),
    "training.learning_rate": ("lr",),
    "training.warmup": ("warmup_ratio", "warmup_steps", "lr_warmup_steps", "num_warmup_steps"),
    "training.scheduler": ("lr_scheduler", "lr_scheduler_type", "lr_schedule"),
    "training.max_grad_norm": ("gradient_clipping", "grad_clip", "clip_grad_norm"),
    "training.max_length": (
        "max_seq_length", "max_seq_len", "sequence_len", "cutoff_len", "model_max_length", "seq_length", "block_size",
        "max_prompt_length", "max_completion_length", "max_source_length",
    ),
    "training.seed": ("random_state", "random_seed", "data_seed"),
    "training.early_stopping": ("early_stopping_patience", "early_stopping_steps"),
    "training.best_by": ("metric_for_best_model", "load_best_model_at_end", "greater_is_better"),
    "training.packing": ("sample_packing", "eval_sample_packing", "multipack", "neat_packing"),
    "training.gradient_checkpointing": (
        "use_gradient_checkpointing", "grad_checkpoint", "enable_activation_checkpointing", "activation_checkpointing",
    ),
    "training.checkpoint_steps": ("save_steps", "save_strategy", "saves_per_epoch", "save_every"),
    "training.label_smoothing": ("label_smoothing_factor",),
    "training.lora_plus_ratio": ("loraplus_lr_ratio", "loraplus_ratio", "loraplus_lr_embedding"),
    "prompt.chat_template": ("chat_template_path", "chat_template_jinja", "conversation"),
    "prompt.chat_template_kwargs": ("enable_thinking", "template_kwargs"),
    "prompt.learn": (
        "train_on_inputs", "train_on_prompt", "train_on_input", "mask_prompt", "mask_history", "roles_to_train",
        "completion_only_loss", "assistant_only_loss", "train_on_responses_only", "train_on_eos",
    ),
    "prompt.learn: last": ("train_on_last_turn_only",),
    "preference.beta": ("rl_beta", "dpo_beta", "pref_beta"),
    "preference.loss": ("loss_type", "pref_loss", "rl", "dpo_loss"),
    "generation.rows": ("predict_with_generate", "eval_table_size"),
    "output": ("output_dir", "adapter_path", "logging_dir", "save_dir"),
    "report.to": ("report_to", "use_wandb", "wandb_project", "use_tensorboard", "use_mlflow"),
    "--resume": ("resume_from_checkpoint", "auto_resume_from_checkpoints"),
    "--device": ("use_cpu", "no_cuda", "device_type"),
}  # fmt: skip
"""What it is called here, with a value where only one says the same, or the command's option -> the others' names."""

_REMARKS: Mapping[str, str] = {
    "data.test_size": "rows that are held out to measure by; data.validation_size: those that early stopping looks at",
    "data.columns": "role: column; docs/tasks.md has the line for each layout",
    "data.train": "a file, a dataset's folder or a dataset id",
    "data.header": "of a file that has none, a list such as [label, title, text]",
    "training.warmup": "a share of all steps, such as 0.03",
    "training.checkpoint_steps": "beside the one after each epoch",
    "training.best_by": "with validation rows the best epoch is kept",
    "prompt.learn": "replies, the default, learns what the model has to answer and no prompt",
    "preference.loss": "pairs of chosen and rejected are learned by DPO",
    "lora.targets": "all linear layers unless said otherwise",
    "data.train_split": "of a dataset, slices such as train[:500] too",
    "prompt.chat_template_kwargs": "a table, such as {enable_thinking: false}",
    "prompt.chat_template": "the base's own unless said otherwise",
    "tokens.add": "those that the base hasn't; the base's own are known",
}

DONE_WITHOUT: Mapping[str, tuple[str, ...]] = {
    "the optimizer is AdamW": (
        "optimizer", "optim", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon", "adam_betas",
    ),
    "each step is logged, and rows are measured by themselves": (
        "logging_steps", "logging_strategy", "logging_first_step", "eval_steps", "eval_strategy", "evaluation_strategy",
        "evals_per_epoch", "steps_per_report", "steps_per_eval", "val_batches", "do_eval", "eval_on_start", "plot_loss",
        "per_device_eval_batch_size", "eval_batch_size", "log_level", "disable_tqdm",
    ),
    "the newest checkpoint and the best one are kept": ("save_total_limit", "save_only_model", "save_safetensors"),
    "it follows from the base's own files": (
        "model_type", "tokenizer_type", "tokenizer", "tokenizer_name", "tokenizer_use_fast", "processor_type",
        "is_llama_derived_model", "tokenizer_path",
    ),
    "it follows from the task": ("task_type", "lora_task_type", "peft_task_type", "stage", "do_train"),
    "biases aren't trained": ("bias", "lora_bias"),
    "heads are trained and saved by themselves, and new tokens by tokens.add": (
        "modules_to_save", "lora_modules_to_save", "additional_target",
    ),
    "the library chooses what the device has": (
        "flash_attention", "flash_attn", "attn_implementation", "sdp_attention", "xformers_attention", "use_cache",
        "tf32", "torch_compile", "use_liger_kernel", "liger_plugin", "low_cpu_mem_usage",
    ),
    "no code of a repository is run": ("trust_remote_code", "trust_remote_code_model"),
    "`lorary push` shares an adapter": ("push_to_hub", "hub_model_id", "hub_strategy", "hub_token", "hub_private_repo"),
    "rows are read and prepared as they are needed, and token ids kept": (
        "dataset_prepared_path", "preprocessing_num_workers", "dataset_num_proc", "dataloader_num_workers",
        "dataloader_pin_memory", "remove_unused_columns", "overwrite_cache", "pad_to_sequence_len", "shuffle",
        "dataset_dir", "streaming",
    ),
    "the reference is the model before its first step, and its log-probabilities are computed once": (
        "precompute_ref_log_probs", "ref_model", "sync_ref_model",
    ),
    "whatever is trained is an adapter": ("use_peft",),
    "several GPUs are the launcher's affair (docs/training.md#more-than-one-gpu)": (
        "deepspeed", "fsdp", "fsdp_config", "ddp_timeout", "ddp_find_unused_parameters", "local_rank",
    ),
    "there is no such thing here": (
        "neftune_noise_alpha", "noisy_embedding_alpha", "label_names", "wandb_entity", "wandb_watch", "strict",
        "overwrite_output_dir", "fan_in_fan_out", "lora_fan_in_fan_out", "rpo_alpha", "reference_free",
        "truncation_mode",
    ),
}  # fmt: skip
"""Why there is no such setting -> the names that others have for it."""

_HOMES = {name: home for home, names in CALLED.items() for name in names}
_REASONS = {name: reason for reason, names in DONE_WITHOUT.items() for name in names}


def home_of(word: str) -> str | None:
    """What a setting of another trainer is called here, if there is such a one: a dotted key, perhaps with a value."""
    return _HOMES.get(word)


def called(home: str) -> str:
    """What to say of a setting that is called ``home`` here."""
    remark = _REMARKS.get(home)
    what = "the option" if home.startswith("--") else "called"
    return f"here it is {what} {home!r}" + (f" ({remark})" if remark else "")


def reason_without(word: str) -> str | None:
    """Why another trainer's setting has no place here, if it has none."""
    return _REASONS.get(word)
