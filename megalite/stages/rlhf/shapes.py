"""The shapes of models that score what another one writes."""

from megalite.errors import ConfigError
from megalite.models.config import ModelConfig
from megalite.stages.start import as_stored


def shape_of_reward_model(
    actor: ModelConfig, folder: str, key: str = "reward_model"
) -> ModelConfig:
    """The shape of a reward model, as its folder has it.

    Args:
        actor: whose answers it scores.
        folder: run, checkpoint or Hugging Face folder or name.
        key: of the config that names the folder.

    Raises:
        CheckpointError: there is none, or a key that is set in ``[model]`` contradicts it.
        ConfigError: it can't read what the actor writes.
    """
    stored, where = as_stored(actor, folder, "value", needs_head=True)
    for what, own, needed in (
        ("num_encoder_layers > 0", stored.is_encoder_decoder, actor.is_encoder_decoder),
        ("rope_axes", stored.rope_axes, actor.rope_axes),
        ("vocab_size", stored.vocab_size, actor.vocab_size),
    ):
        if own != needed:
            raise ConfigError(
                f"--{key}: {what} is {own} in {where}; must be {needed}, as the "
                "actor's: the two read the same tokens"
            )
    return stored.model_copy(update={"head": "value"})
