"""How long a run is, in the unit that it was told: steps, epochs of its samples, or tokens."""

from typing import TypeVar

from megalite.errors import ConfigError
from megalite.stages.setup import StageConfig

StageConfigT = TypeVar("StageConfigT", bound=StageConfig)


def in_steps(
    config: StageConfigT, samples: int, tokens: int = 0, key: str = "data.train"
) -> tuple[StageConfigT, list[str]]:
    """A config whose run is as many steps long as its epochs or tokens take; and that in words.

    The last step may go beyond them, into the next epoch. ``train.epochs`` and ``train.tokens`` are
    0 in it, so that a run's config.toml says one length.

    Args:
        config: of the run.
        samples: of an epoch, after several were packed into one; 0: not known here.
        tokens: that the decoder reads of a sample; 0: its samples differ.
        key: what has the samples.

    Raises:
        ConfigError: the stage has no such unit.
    """
    train, batch = config.train, config.train.global_batch_size
    if train.num_tokens and not tokens:
        raise ConfigError(
            f"--train.tokens {train.tokens}: is a length of pretraining; samples of {config.stage} "
            "have different lengths: give train.epochs or train.steps"
        )
    if train.num_tokens:
        steps = -(-train.num_tokens // (tokens * batch))
        said = f"train.tokens {train.tokens}: {steps:,} steps of {batch} x {tokens:,} tokens"
    elif train.epochs:
        steps = max(-int(-train.epochs * samples // batch), 1)
        said = (
            f"train.epochs {train.epochs:g} of {samples:,} samples of {key}: {steps:,} steps of "
            f"{batch} samples"
        )
    else:
        return config, []
    changed = {"steps": steps, "epochs": 0.0, "tokens": 0}
    return config.model_copy(update={"train": train.model_copy(update=changed)}), [said]
