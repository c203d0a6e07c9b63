"""What a PPO run is told."""

from typing import ClassVar

from pydantic import Field

from megalite.config.amount import Measure
from megalite.config.course import settled as settled_course
from megalite.data.config import ConversationConfig, CorpusConfig
from megalite.engine.layout import BatchSizes
from megalite.errors import ConfigError
from megalite.models.config import ModelConfig
from megalite.stages.corpus import check_corpus_positions
from megalite.stages.language import LanguageConfig
from megalite.stages.rlhf.experience import RewardConfig
from megalite.stages.rlhf.kl import KLConfig
from megalite.stages.rlhf.placement import FrozenConfig
from megalite.stages.rlhf.rollout import RolloutConfig
from megalite.stages.rlhf.updates import UpdateConfig
from megalite.stages.samples import SamplesConfig
from megalite.stages.setup import check_positions
from megalite.stages.start import as_stored
from megalite.training.config import RunConfig


class PPOConfig(LanguageConfig):
    """A PPO run. ``checkpoint.start`` is the actor's and the reference's."""

    stage: ClassVar[str] = "ppo"
    drops: ClassVar[bool] = False
    run: RunConfig = RunConfig(folder="runs/ppo")
    data: ConversationConfig = ConversationConfig()
    samples: SamplesConfig = SamplesConfig()
    reward_model: str = Field(
        "",
        description="run, checkpoint or Hugging Face folder or name of the reward model, which the "
        "critic starts from too; empty: none, rules score the answers (reward.function)",
    )
    critic_learning_rate: float = Field(
        0.0, ge=0, description="peak learning rate of the critic; 0: the actor's"
    )
    rollout: RolloutConfig = RolloutConfig()
    reward: RewardConfig = RewardConfig()
    kl: KLConfig = KLConfig()
    update: UpdateConfig = UpdateConfig()
    pretraining: CorpusConfig = CorpusConfig()
    frozen: FrozenConfig = FrozenConfig()

    def settled_in(self, measure: Measure, total: int) -> "PPOConfig":
        """See :class:`StageConfig`."""
        told = self.kl.coefficient
        coefficient = settled_course(told, measure, total, "kl.coefficient")
        alone = measure.settled(self.update.critic_alone, "update.critic_alone")
        changed = {
            "kl": self.kl.model_copy(update={"coefficient": coefficient}),
            "update": self.update.model_copy(update={"critic_alone": alone}),
        }
        return self.model_copy(update=changed)

    def batch_sizes(self) -> BatchSizes:
        """See :class:`StageConfig`."""
        update = self.update
        return self.train.batch_sizes(update.mini_batches, update.pretrain_coefficient > 0)

    def check_inputs(self) -> None:
        """See :class:`StageConfig`."""
        prompt, answer = self.data.sequence_length, self.rollout.max_new_tokens
        rows = max(prompt, 1 + answer) if self.model.is_encoder_decoder else prompt + answer
        key = f"data.sequence_length {prompt} with rollout.max_new_tokens {answer}"
        for model in (self.model, self.critic()):
            check_positions(model, rows, key)
        if self.update.pretrain_coefficient:
            check_corpus_positions(self.model, self.pretraining, "pretraining")

    def critic(self) -> ModelConfig:
        """The critic's model, and the reward model's: as its folder has it.

        Without a reward model it is the actor's with a scalar head.

        Raises:
            CheckpointError: there is none, or a key that is set in ``[model]`` contradicts it.
            ConfigError: it can't read what the actor writes.
        """
        if not self.reward_model:
            return self.model.model_copy(update={"head": "value"})
        stored, where = as_stored(self.model, self.reward_model, "value", needs_head=True)
        for what, own, needed in (
            ("num_encoder_layers > 0", stored.is_encoder_decoder, self.model.is_encoder_decoder),
            ("rope_axes", stored.rope_axes, self.model.rope_axes),
            ("vocab_size", stored.vocab_size, self.model.vocab_size),
        ):
            if own != needed:
                raise ConfigError(
                    f"--reward_model: {what} is {own} in {where}; must be {needed}, as the "
                    "actor's: the two read the same tokens"
                )
        return stored.model_copy(update={"head": "value"})

    def check_sources(self) -> None:
        """Refuse a run without prompts, models or text that it needs.

        Raises:
            ConfigError: it names the key that must be set.
        """
        if not self.data.train:
            raise ConfigError("--data.train: needs at least one file of prompts")
        if not self.checkpoint.start:
            raise ConfigError(
                "--checkpoint.start: must name a checkpoint; PPO starts from a trained model"
            )
        if not (self.reward_model or self.reward.function):
            raise ConfigError(
                "--reward_model: must name a checkpoint, or --reward.function a rule: answers are "
                "learned from by their scores"
            )
        for key in ("z_loss", "max_z_loss", "label_smoothing"):
            if getattr(self, key) and not self.update.pretrain_coefficient:
                raise ConfigError(
                    f"--{key} {getattr(self, key)}: is of the pretraining text beside the answers, "
                    "and there is none: give update.pretrain_coefficient, or 0"
                )
        if self.pretraining.weights_at:
            raise ConfigError(
                "--pretraining.weights_at: text beside answers has the same weights throughout: "
                "give pretraining.weights"
            )
        if self.update.pretrain_coefficient and not self.pretraining.train:
            raise ConfigError(
                "--pretraining.train: needs a store, as update.pretrain_coefficient > 0"
            )
        size, parts = self.train.global_batch_size, self.update.mini_batches
        unfit = [n for n in self.train.batch_ramp.all_sizes(size) if n % parts]
        if unfit:
            where = f"train.global_batch_size {size}"
            if unfit != [size] and size % parts == 0:
                where = f"the sizes {', '.join(map(str, unfit))} of train.batch_ramp"
            raise ConfigError(f"--update.mini_batches {parts}: must divide {where}")
