"""The shapes of models that score what another one writes."""

from megalite.errors import ConfigError
from megalite.models.config import ModelConfig
from megalite.stages.start import as_stored

CRITIC = "reward_model"  # the key of the reward model that a critic starts from


def shape_of_reward_model(actor: ModelConfig, folder: str, key: str = CRITIC) -> ModelConfig:
    """The shape of a reward model, as its folder has it.

    That of ``reward_model`` is also the critic's, which learns: what ``[model]`` says holds for it.

    Args:
        actor: whose answers it scores.
        folder: run, checkpoint or Hugging Face folder or name.
        key: of the config that names the folder.

    Raises:
        CheckpointError: there is none, or a key that is set in ``[model]`` contradicts it.
        ConfigError: it can't read what the actor writes.
    """
    model = actor if key == CRITIC else ModelConfig.model_construct(set(), **dict(actor))
    stored, where = as_stored(model, folder, "value", needs_head=True)
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
