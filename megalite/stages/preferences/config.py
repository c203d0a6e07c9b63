"""What a run that learns from preferences is told."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from megalite.config import Section
from megalite.data.config import StoredConversationConfig
from megalite.errors import ConfigError
from megalite.generation.answer import SLOTS
from megalite.stages.positions import check_positions
from megalite.stages.rlhf.rollout import RolloutConfig
from megalite.stages.samples import SamplesConfig
from megalite.stages.setup import StageConfig
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
NO_Z_LOSS = (
    "holds the softmax of a model that learns each next token; dpo's losses are of an answer's "
    "log-probability beside another's: leave it out"
)


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


class AnswersConfig(Section):
    """Answers to held-out prompts that a run measures at each evaluation, as PPO does."""

    prompts: tuple[str, ...] = Field(
        (),
        description="files of held-out prompts, of which each evaluation answers "
        "train.evaluate_samples; empty: no answers are measured",
    )
    reward_model: str = Field(
        "",
        description="run, checkpoint or Hugging Face folder or name of a reward model that scores "
        "the answers and teaches nothing; empty: they have no score",
    )
    each: int = Field(
        1,
        gt=0,
        description="answers to each prompt; of several `heldout_self_bleu` says how alike they "
        "are",
    )
    max_new_tokens: int = Field(64, gt=0, description="largest number of tokens per answer")
    temperature: float = Field(1.0, gt=0, description="divisor of the logits")
    micro_batch_size: int = Field(32, gt=0, description="answers judged per forward pass")
    slots: int = Field(SLOTS, gt=0, description="answers written side by side")

    @property
    def rollout(self) -> RolloutConfig:
        """How answers are drawn."""
        return RolloutConfig(
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            micro_batch_size=self.micro_batch_size,
            slots=self.slots,
        )


class DPOConfig(StageConfig):
    """A run that learns from preferences. ``checkpoint.start`` is the reference's too."""

    stage: ClassVar[str] = "dpo"
    lacking: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("z_loss", "max_z_loss"), NO_Z_LOSS),
        "label_smoothing": "is of each next token, and dpo learns pairs: loss.label_smoothing is "
        "the share of those that are taken to be the wrong way round",
    }
    drops: ClassVar[bool] = False
    run: RunConfig = RunConfig(folder="runs/dpo")
    data: StoredConversationConfig = StoredConversationConfig()
    samples: SamplesConfig = SamplesConfig()
    loss: PreferenceLossConfig = PreferenceLossConfig()
    reference: ReferenceConfig = ReferenceConfig()
    answers: AnswersConfig = AnswersConfig()

    @property
    def has_heldout(self) -> bool:
        """See :class:`StageConfig`."""
        return super().has_heldout or bool(self.answers.prompts)

    def check_inputs(self) -> None:
        """See :class:`StageConfig`."""
        length = self.data.sequence_length
        check_positions(self.model, length, f"data.sequence_length {length}")
        if self.answers.prompts:
            more = self.answers.max_new_tokens
            rows = max(length, 1 + more) if self.model.is_encoder_decoder else length + more
            key = f"data.sequence_length {length} with answers.max_new_tokens {more}"
            check_positions(self.model, rows, key)

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
        if self.answers.prompts and not self.checkpoint.start:
            raise ConfigError(
                "--checkpoint.start: must name a checkpoint: answers.prompts measures how far "
                "answers are from what it says"
            )
        if self.answers.reward_model and not self.answers.prompts:
            raise ConfigError(
                f"--answers.reward_model {self.answers.reward_model}: has nothing to score: give "
                "answers.prompts"
            )
