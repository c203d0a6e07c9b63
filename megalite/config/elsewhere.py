"""Names that other trainers give to what a key of ours says; a mistaken key is answered with them.

A table a trainer: its name of a thing, our key, and what else must be known. The documentation's
tables (docs/from-megatron.md, docs/from-hugging-face.md) are held to these by a test.
"""

from dataclasses import dataclass
from typing import NamedTuple


class Ours(NamedTuple):
    """What stands here for a name of another trainer.

    Attributes:
        key: of a config; a section's first part may differ in a stage without it.
        note: how the value differs; empty where it is the same.
    """

    key: str
    note: str = ""


@dataclass(frozen=True)
class Trainer:
    """Another trainer's names, with underscores between words.

    Attributes:
        name: of the trainer.
        names: its name of a thing to ours.
    """

    name: str
    names: dict[str, Ours]


MEGATRON = Trainer(
    "Megatron-LM",
    {
        "tensor_model_parallel_size": Ours("parallel.tp"),
        "pipeline_model_parallel_size": Ours("parallel.pp"),
        "num_layers_per_virtual_pipeline_stage": Ours(
            "parallel.chunks_per_rank", "layers / pp / it, with parallel.schedule interleaved"
        ),
        "num_virtual_stages_per_pipeline_rank": Ours(
            "parallel.chunks_per_rank", "with parallel.schedule interleaved"
        ),
        "sequence_parallel": Ours("parallel.sequence_parallel"),
        "use_distributed_optimizer": Ours(
            "parallel.shard", "FSDP2 shards parameters and gradients too"
        ),
        "use_torch_fsdp2": Ours("parallel.shard", "the number of processes"),
        "recompute_granularity": Ours("parallel.recompute"),
        "recompute_activations": Ours("parallel.recompute", "selective"),
        "recompute_num_layers": Ours("parallel.recompute_blocks", "blocks from the first"),
        "distributed_timeout_minutes": Ours("parallel.timeout_s", "in seconds"),
        "micro_batch_size": Ours("train.micro_batch_size"),
        "global_batch_size": Ours("train.global_batch_size"),
        "train_iters": Ours("train.steps"),
        "train_samples": Ours("train.samples"),
        "exit_duration_in_mins": Ours("train.most_minutes"),
        "clip_grad": Ours("train.max_grad_norm"),
        "bf16": Ours("train.precision", "bf16"),
        "fp16": Ours("train.precision", "fp16"),
        "log_interval": Ours("train.log_every"),
        "eval_interval": Ours("train.evaluate_every"),
        "eval_iters": Ours("train.evaluate_samples", "in samples"),
        "lr": Ours("optimizer.learning_rate"),
        "adam_beta1": Ours("optimizer.beta1"),
        "adam_beta2": Ours("optimizer.beta2"),
        "adam_eps": Ours("optimizer.eps"),
        "weight_decay": Ours("optimizer.weight_decay"),
        "lr_decay_style": Ours("schedule.kind"),
        "min_lr": Ours("schedule.floor", "a share of the peak"),
        "lr_warmup_fraction": Ours("schedule.warmup"),
        "lr_warmup_iters": Ours("schedule.warmup", "'2000 steps'"),
        "lr_warmup_samples": Ours("schedule.warmup", "'183105 samples'"),
        "lr_warmup_init": Ours("schedule.warmup_start", "a share of the peak"),
        "lr_decay_iters": Ours("schedule.end", "'100000 steps'"),
        "lr_decay_samples": Ours("schedule.end", "'200M samples'"),
        "lr_wsd_decay_iters": Ours("schedule.decay", "'10000 steps'"),
        "lr_wsd_decay_samples": Ours("schedule.decay", "'20M samples'"),
        "lr_wsd_decay_style": Ours("schedule.decay_kind"),
        "rampup_batch_size": Ours("train.batch_ramp.start", "with increment and over"),
        "save": Ours("run.folder", "a run goes on from its own folder"),
        "load": Ours("run.folder", "a run goes on from its own folder"),
        "save_interval": Ours("checkpoint.every"),
        "async_save": Ours("checkpoint.asynchronous"),
        "non_persistent_local_ckpt_dir": Ours("checkpoint.local.folder"),
        "non_persistent_save_interval": Ours("checkpoint.local.every"),
        "finetune": Ours("checkpoint.start", "weights alone; the clock starts at 0"),
        "pretrained_checkpoint": Ours("checkpoint.start"),
        "no_load_optim": Ours("checkpoint.start", "weights alone"),
        "tensorboard_dir": Ours("run.trackers", "tensorboard; the files lie in the run's folder"),
        "data_path": Ours("data.train", "weights apart, in data.weights"),
        "train_data_path": Ours("data.train", "weights apart, in data.weights"),
        "valid_data_path": Ours("data.heldout"),
        "seq_length": Ours("data.sequence_length"),
        "reset_attention_mask": Ours("data.separate_documents", "with positions"),
        "reset_position_ids": Ours("data.separate_documents", "with the mask"),
        "tokenizer_model": Ours("tokenizer.path"),
        "vocab_file": Ours("tokenizer.path", "the folder that it lies in"),
        "encoder_num_layers": Ours("model.num_encoder_layers"),
        "ffn_hidden_size": Ours("model.ffn_size"),
        "num_attention_heads": Ours("model.num_heads"),
        "num_query_groups": Ours("model.num_kv_heads"),
        "kv_channels": Ours("model.head_size"),
        "max_position_embeddings": Ours("model.max_positions"),
        "position_embedding_type": Ours("model.position"),
        "rotary_base": Ours("model.rope_base"),
        "rotary_percent": Ours("model.rotary_size", "in dimensions of a head"),
        "rotary_interleaved": Ours("model.rope_interleaved"),
        "normalization": Ours("model.norm"),
        "norm_epsilon": Ours("model.norm_eps"),
        "apply_layernorm_1p": Ours("model.norm_plus_one"),
        "swiglu": Ours("model.gated", "with model.activation silu"),
        "untie_embeddings_and_output_weights": Ours("model.tie_embeddings", "false"),
        "add_qkv_bias": Ours("model.qkv_bias"),
        "disable_bias_linear": Ours("model.ffn_bias", "false, and model.attention_bias"),
        "qk_layernorm": Ours("model.query_key_norm"),
        "hidden_dropout": Ours("model.dropout"),
        "init_method_std": Ours("model.init_std"),
    },
)

HUGGING_FACE = Trainer(
    "Hugging Face",
    {
        "model_name_or_path": Ours("checkpoint.start"),
        "output_dir": Ours("run.folder"),
        "resume_from_checkpoint": Ours("run.folder", "a run goes on from its own folder"),
        "report_to": Ours("run.trackers", "tensorboard, wandb, mlflow"),
        "per_device_train_batch_size": Ours("train.micro_batch_size"),
        "gradient_accumulation_steps": Ours(
            "train.global_batch_size", "a device's batch x accumulation x devices"
        ),
        "num_train_epochs": Ours("train.epochs"),
        "max_steps": Ours("train.steps"),
        "max_grad_norm": Ours("train.max_grad_norm"),
        "torch_dtype": Ours("train.precision"),
        "bf16": Ours("train.precision", "bf16"),
        "fp16": Ours("train.precision", "fp16"),
        "logging_steps": Ours("train.log_every"),
        "eval_steps": Ours("train.evaluate_every"),
        "max_eval_samples": Ours("train.evaluate_samples"),
        "optim": Ours("optimizer.kind"),
        "adam_beta1": Ours("optimizer.beta1"),
        "adam_beta2": Ours("optimizer.beta2"),
        "adam_epsilon": Ours("optimizer.eps"),
        "lr_scheduler_type": Ours("schedule.kind"),
        "warmup_ratio": Ours("schedule.warmup"),
        "warmup_steps": Ours("schedule.warmup", "'2000 steps'"),
        "save_steps": Ours("checkpoint.every"),
        "save_total_limit": Ours("checkpoint.keep"),
        "metric_for_best_model": Ours("checkpoint.best", "heldout_loss"),
        "load_best_model_at_end": Ours("checkpoint.best", "its checkpoint is kept"),
        "early_stopping_patience": Ours("train.patience"),
        "gradient_checkpointing": Ours("parallel.recompute", "full"),
        "fsdp": Ours("parallel.shard", "the number of processes"),
        "deepspeed": Ours("parallel.shard", "the number of processes, as ZeRO-3"),
        "ddp_timeout": Ours("parallel.timeout_s"),
        "dataset": Ours("data.train", "files"),
        "dataset_name": Ours("data.train", "files"),
        "train_file": Ours("data.train"),
        "eval_dataset": Ours("data.heldout"),
        "validation_file": Ours("data.heldout"),
        "dataset_text_field": Ours("data.columns"),
        "max_length": Ours("data.sequence_length"),
        "max_seq_length": Ours("data.sequence_length"),
        "cutoff_len": Ours("data.sequence_length"),
        "tokenized_path": Ours("data.cache"),
        "packing": Ours("data.packed"),
        "template": Ours("data.template"),
        "chat_template": Ours("data.template"),
        "tokenizer_name": Ours("tokenizer.path"),
        "trust_remote_code": Ours("tokenizer.trust_code"),
        "beta": Ours("loss.beta"),
        "pref_beta": Ours("loss.beta"),
        "loss_type": Ours("loss.kind"),
        "pref_loss": Ours("loss.kind"),
        "rpo_alpha": Ours("loss.sft_coefficient"),
        "simpo_gamma": Ours("loss.margin"),
        "desirable_weight": Ours("loss.good_weight"),
        "undesirable_weight": Ours("loss.bad_weight"),
        "reward_model_path": Ours("reward_model"),
        "response_length": Ours("rollout.max_new_tokens"),
        "max_new_tokens": Ours("rollout.max_new_tokens"),
        "num_ppo_epochs": Ours("update.epochs"),
        "num_mini_batches": Ours("update.mini_batches"),
        "cliprange": Ours("update.clip"),
        "cliprange_value": Ours("update.value_clip"),
        "init_kl_coef": Ours("kl.coefficient"),
        "kl_coef": Ours("kl.coefficient"),
        "gamma": Ours("reward.discount"),
        "lam": Ours("reward.decay"),
        "whiten_rewards": Ours("reward.whiten_rewards"),
    },
)
TRAINERS = (MEGATRON, HUGGING_FACE)


def ours_for(name: str, keys: set[str]) -> str | None:
    """What stands here for another trainer's name: a sentence's end, or None.

    Args:
        name: a key as it came, its last part; dashes or underscores.
        keys: that the config has.
    """
    theirs = name.replace("-", "_").lower()
    for trainer in TRAINERS:
        ours = trainer.names.get(theirs)
        if ours is not None and ours.key in keys:
            note = f" ({ours.note})" if ours.note else ""
            return f"{trainer.name}'s {name} is {ours.key} here{note}"
    return None
