"""What a run that learns from preferences is told."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from megalite.config import Section
from megalite.data.config import ConversationConfig
from megalite.errors import ConfigError
from megalite.stages.samples import SamplesConfig
from megalite.stages.setup import StageConfig, check_positions
from megalite.training.config import RunConfig

Kind = Literal["dpo", "ipo", "kto", "orpo", "simpo"]
BETA = {"dpo": 0.1, "ipo": 0.1, "kto": 0.1, "orpo": 0.1, "simpo": 2.0}  # their authors'
OWN = {  # keys that only some kinds have, with the kinds
    "label_smoothing": ("dpo", "simpo"),
    "length_normalised": ("dpo", "ipo", "kto"),
    "sft_coefficient": ("dpo", "ipo", "simpo"),
    "margin": ("simpo",),
    "good_weight": ("kto",),
    "bad_weight": ("kto",),
}


class PreferenceLossConfig(Section):
    """How preferences become a loss."""

    kind: Kind = Field(
        "dpo",
        description="loss; dpo, ipo: of pairs, against a reference; kto: of answers that are good "
        "or bad by themselves, against a reference; orpo, simpo: of pairs, without a reference",
    )
    beta: float = Field(
        0.0,
        ge=0,
        description="beta; dpo, ipo (there tau), kto: how strongly a difference to the reference "
        "is held back; orpo (there lambda): weight of the odds ratio; simpo: scale of a mean "
        "log-probability; 0: 2 for simpo, else 0.1",
    )
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=0.5,
        description="share of pairs that are taken to be the wrong way round (dpo, simpo)",
    )
    length_normalised: bool = Field(
        False,
        description="whether an answer's log-probability is the mean over its tokens instead of "
        "the sum (dpo, ipo, kto); orpo and simpo always take the mean",
    )
    sft_coefficient: float = Field(
        0.0,
        ge=0,
        description="weight of the better answer's own loss, in nats per token, beside a pair's "
        "(dpo, ipo, simpo); 0: none",
    )
    margin: float = Field(
        1.0, ge=0, description="gamma, reward that the better answer must be ahead by (simpo)"
    )
    good_weight: float = Field(1.0, gt=0, description="weight of a good answer (kto)")
    bad_weight: float = Field(1.0, gt=0, description="weight of a bad answer (kto)")

    @model_validator(mode="after")
    def _check(self) -> "PreferenceLossConfig":
        for key, kinds in OWN.items():
            value = getattr(self, key)
            if self.kind not in kinds and value != type(self).model_fields[key].default:
                raise ConfigError(
                    f"--loss.{key} {str(value).lower()}: is of {', '.join(kinds)}, and loss.kind "
                    f"is {self.kind}: leave it out, or choose another kind"
                )
        return self

    @property
    def strength(self) -> float:
        """Beta, or the kind's own where none is set."""
        return self.beta or BETA[self.kind]

    @property
    def needs_reference(self) -> bool:
        """Whether answers are compared with a reference's."""
        return self.kind in ("dpo", "ipo", "kto")

    @property
    def takes_mean(self) -> bool:
        """Whether an answer's log-probability is the mean over its tokens."""
        return self.length_normalised or not self.needs_reference


class ReferenceConfig(Section):
    """Where the log-probabilities of the reference, the model that the run starts from, are."""

    kind: Literal["stored", "model"] = Field(
        "stored",
        description="stored: computed once, before the first step, and kept in a file; model: in "
        "every step, by a second, frozen model, or with lora.rank by the same one without adapters",
    )
    folder: str = Field(
        "",
        description="folder of stored log-probabilities, which runs can share: a file is known by "
        "the reference and the data it is of; empty: reference/ in the run's folder",
    )


class DPOConfig(StageConfig):
    """A run that learns from preferences. ``checkpoint.start`` is the reference's too."""

    stage: ClassVar[str] = "dpo"
    drops: ClassVar[bool] = False
    run: RunConfig = RunConfig(folder="runs/dpo")
    data: ConversationConfig = ConversationConfig()
    samples: SamplesConfig = SamplesConfig()
    loss: PreferenceLossConfig = PreferenceLossConfig()
    reference: ReferenceConfig = ReferenceConfig()

    def check_inputs(self) -> None:
        """See :class:`StageConfig`."""
        length = self.data.sequence_length
        check_positions(self.model, length, f"data.sequence_length {length}")

    def check_sources(self) -> None:
        """Refuse a run without rankings, or without the reference that it needs.

        Raises:
            ConfigError: it names the key that must be set.
        """
        if not self.data.train:
            raise ConfigError("--data.train: needs at least one file of rankings")
        if self.loss.needs_reference and not self.checkpoint.start:
            raise ConfigError(
                f"--checkpoint.start: must name a checkpoint: it is the reference of loss.kind "
                f"{self.loss.kind}"
            )
