"""A run of any stage in the planner's words: what it trains, and what stands beside that."""

from typing import Any

from megalite.distributed.mesh import ParallelConfig
from megalite.errors import CheckpointError
from megalite.models.config import ModelConfig
from megalite.plan.memory import Work
from megalite.plan.stages import Stage, StageName
from megalite.stages.rlhf.shapes import shape_of_reward_model


def stage_of(config: Any, name: StageName) -> Stage:
    """A stage, with what the config of a run says of it.

    Args:
        config: of a run, perhaps of another stage.
        name: of the stage.
    """
    if name == "ppo" and hasattr(config, "rollout"):
        answer, models = config.rollout.max_new_tokens, config.reward_models()
        models.pop("reward_model", None)
        return Stage(
            name,
            answered=answer / (config.data.sequence_length + answer),
            passes=config.update.epochs,
            slots=config.rollout.slots,
            has_reward=bool(config.reward_model) or not (config.reward.function or models),
            judging=tuple(_shape(config, key, path) for key, path in models.items()),
            frozen=_frozen_layout(config),
            shares_base=getattr(config, "critic_shares_base", False),
        )
    if name == "dpo" and hasattr(config, "reference"):
        asks = config.loss.needs_reference and config.reference.kind == "model"
        answers = config.answers
        is_second = bool(answers.prompts) and not asks and not config.lora.rank
        return Stage(name, has_reference=asks, judges=is_second + bool(answers.reward_model))
    return Stage(name)


def _shape(config: Any, key: str, path: str) -> ModelConfig:
    """A reward model's shape; the run's own where there is none yet."""
    try:
        return shape_of_reward_model(config.model, path, key)
    except CheckpointError:
        model: ModelConfig = config.model
        return model


def _frozen_layout(config: Any) -> ParallelConfig | None:
    """Of PPO's frozen models on processes of their own; None where they share."""
    frozen = config.frozen
    if not frozen.processes:
        return None
    layout: ParallelConfig = frozen.layout(config.parallel)
    copies = frozen.processes // (frozen.tp * frozen.pp * frozen.shard)
    return layout.model_copy(update={"replicate": max(copies, 1)})


def work_of(config: Any) -> Work:
    """What a run trains: of PPO the prompt and the answer, of an encoder-decoder both streams."""
    data, is_pair = config.data, config.model.is_encoder_decoder
    length, encoder = data.sequence_length, 0
    if is_pair:
        encoder = getattr(data, "encoder_rows", length)
    if hasattr(config, "rollout"):
        answer = config.rollout.max_new_tokens
        length = 1 + answer if is_pair else length + answer
    return Work(config.model, config.train, length, encoder, config.optimizer, config.lora)
