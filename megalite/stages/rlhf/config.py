"""What a run is told whose model answers prompts and learns from the scores: PPO, GRPO."""

from abc import abstractmethod
from typing import Annotated, ClassVar, TypeVar

from pydantic import Field

from megalite.config.amount import Measure
from megalite.config.course import settled as settled_course
from megalite.config.section import UsualName
from megalite.data.config import ConversationConfig, CorpusConfig
from megalite.engine.layout import BatchSizes
from megalite.engine.lora import check_blocks, check_lora
from megalite.errors import ConfigError
from megalite.models.config import ModelConfig
from megalite.stages.adapters import StoredAdapters
from megalite.stages.corpus import check_corpus_positions
from megalite.stages.language import LanguageConfig
from megalite.stages.positions import check_positions
from megalite.stages.rlhf.experience import RewardConfig
from megalite.stages.rlhf.groups import (
    LOSS_MEANS,
    AdvantageConfig,
    GroupLearning,
    GroupRolloutConfig,
    GroupUpdateConfig,
)
from megalite.stages.rlhf.kl import KLConfig
from megalite.stages.rlhf.placement import FrozenConfig
from megalite.stages.rlhf.rollout import RolloutConfig
from megalite.stages.rlhf.shapes import shape_of_reward_model
from megalite.stages.rlhf.sharing import check_sharing, shared_start
from megalite.stages.rlhf.updates import PolicyUpdateConfig, UpdateConfig
from megalite.stages.rules.config import MODEL, ScoreConfig
from megalite.stages.samples import SamplesConfig
from megalite.training.config import RunConfig
from megalite.training.folder.record import REWARD_MODELS
from megalite.training.watchdog.timeouts import Timeouts

PolicyConfigT = TypeVar("PolicyConfigT", bound="PolicyConfig")


class PolicyConfig(LanguageConfig):
    """What PPO and GRPO share. ``checkpoint.start`` is the actor's and the reference's.

    Attributes:
        has_critic: whether a critic learns beside the actor.
    """

    has_critic: ClassVar[bool] = False
    drops: ClassVar[bool] = False

    data: ConversationConfig = ConversationConfig()
    samples: SamplesConfig = SamplesConfig()
    reward_model: str = Field(
        "",
        description="run, checkpoint or Hugging Face folder or name of the reward model, which "
        "PPO's critic starts from too; empty: none, rules score the answers (reward.function)",
    )
    rollout: RolloutConfig = RolloutConfig()
    reward: ScoreConfig = ScoreConfig()
    kl: KLConfig = KLConfig()
    update: PolicyUpdateConfig = PolicyUpdateConfig()
    pretraining: Annotated[CorpusConfig, UsualName("data")] = CorpusConfig()
    frozen: FrozenConfig = FrozenConfig()

    def settled_in(self: PolicyConfigT, measure: Measure, total: int) -> PolicyConfigT:
        """See :class:`StageConfig`."""
        told = self.kl.coefficient
        coefficient = settled_course(told, measure, total, "kl.coefficient")
        kl = self.kl.model_copy(update={"coefficient": coefficient})
        return self.model_copy(update={"kl": kl})

    @property
    def answers_each(self) -> int:
        """Answers to each prompt of a step."""
        return 1

    @property
    def code(self) -> list[str]:
        """See :class:`StageConfig`."""
        return [name.rpartition(":")[0] for name in self.reward.function if ":" in name]

    @property
    @abstractmethod
    def kl_is_in_loss(self) -> bool:
        """Whether the KL penalty is in the loss, not in the rewards."""

    def batch_sizes(self) -> BatchSizes:
        """See :class:`StageConfig`."""
        update = self.update
        has_text = update.pretrain_coefficient > 0
        return self.train.batch_sizes(update.mini_batches, has_text, self.answers_each)

    def models(self) -> list[ModelConfig]:
        """The shapes of the run's models."""
        values = None if self.reward_model else self.value_model()
        own = [self.model] if values is None else [self.model, values]
        return own + self.shapes_of_reward_models()

    def reward_models(self) -> dict[str, str]:
        """The reward models' folders by the keys that name them, ``reward_model`` first."""
        more = {f"{REWARD_MODELS}{name}": path for name, path in self.reward.models.items()}
        return {"reward_model": self.reward_model, **more} if self.reward_model else more

    def weights_of_reward_models(self) -> dict[str, float]:
        """The weight of each reward model's score by its name, in the order of the models."""
        told = self.reward.model_weights
        more = {name: told.get(name, 1.0) for name in self.reward.models}
        return {MODEL: self.reward.model_weight, **more} if self.reward_model else more

    def shapes_of_reward_models(self) -> list[ModelConfig]:
        """Their shapes, each as its folder has it.

        Raises:
            UserError: see :func:`shape_of_reward_model`.
        """
        named = self.reward_models().items()
        return [shape_of_reward_model(self.model, path, key) for key, path in named]

    def check_inputs(self) -> None:
        """See :class:`StageConfig`."""
        prompt, answer = self.data.sequence_length, self.rollout.max_new_tokens
        rows = max(prompt, 1 + answer) if self.model.is_encoder_decoder else prompt + answer
        key = f"data.sequence_length {prompt} with rollout.max_new_tokens {answer}"
        check_positions(self.model, rows, key)
        shapes = self.shapes_of_reward_models()
        for whose, model in zip(self.reward_models(), shapes, strict=True):
            check_positions(model, rows, key, f"{whose}'s model")
        if self.update.pretrain_coefficient:
            check_corpus_positions(self.model, self.pretraining, "pretraining")
        self._check_bases()

    def _check_bases(self) -> None:
        """Refuse layouts that cut quantised blocks of a critic's or a frozen model's base."""
        critic = self.value_model() if self.has_critic else None
        if critic is not None:
            check_lora(self.lora, critic, self.parallel)
        section, layout = "parallel", self.parallel
        if self.frozen.processes:
            section, layout = "frozen", self.frozen.layout(self.parallel)
        for model in [self.model, *self.shapes_of_reward_models()]:
            check_blocks(self.lora, model, layout, section)

    def value_model(self) -> ModelConfig | None:
        """The reward model's shape, and the critic's: as its folder has it.

        Without a reward model a critic is the actor's with a scalar head.

        Returns:
            None where there is neither of the two.

        Raises:
            UserError: see :func:`shape_of_reward_model`.
        """
        if not self.reward_model:
            return self.model.model_copy(update={"head": "value"}) if self.has_critic else None
        return shape_of_reward_model(self.model, self.reward_model)

    def check_sources(self) -> None:
        """Refuse a run without prompts, models or text that it needs.

        Raises:
            ConfigError: it names the key that must be set.
        """
        if not self.data.train:
            raise ConfigError("--data.train: needs at least one file of prompts")
        if not self.checkpoint.start:
            raise ConfigError(
                f"--checkpoint.start: must name a checkpoint; {self.stage} starts from a trained "
                "model"
            )
        self._check_scores()
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
        self._check_mini_batches()

    def _check_scores(self) -> None:
        reward = self.reward
        if not (self.reward_models() or reward.function):
            raise ConfigError(
                "--reward_model: must name a checkpoint, or --reward.function a rule: answers are "
                "learned from by their scores"
            )
        has_others = bool(reward.function or reward.models)
        if reward.model_weight != 1.0 and not (self.reward_model and has_others):
            raise ConfigError(
                f"--reward.model_weight {reward.model_weight:g}: weighs the score of reward_model "
                "beside others: give both, or leave it out"
            )
        if reward.guard.model and len(self.reward_models()) + len(reward.function) < 2:
            raise ConfigError(
                f"--reward.guard.model {reward.guard.model}: is the only score: give another, "
                "which counts where this one finds nothing bad"
            )
        stall_s = Timeouts.beside(self.parallel.timeout_s).stall_s
        if reward.function and reward.time_limit_s >= stall_s:
            raise ConfigError(
                f"--reward.time_limit_s {reward.time_limit_s:g}: must be less than {stall_s:g}, "
                "after which a process that stands still has hung: lower it, or raise "
                "parallel.timeout_s"
            )

    def _check_mini_batches(self) -> None:
        size, each, parts = (
            self.train.global_batch_size,
            self.answers_each,
            self.update.mini_batches,
        )
        unfit = [n for n in self.train.batch_ramp.all_sizes(size) if n * each % parts]
        if unfit:
            where = f"train.global_batch_size {size}"
            if unfit != [size] and size * each % parts == 0:
                where = f"the sizes {', '.join(map(str, unfit))} of train.batch_ramp"
            groups = f" x rollout.answers {each}" if each > 1 else ""
            raise ConfigError(f"--update.mini_batches {parts}: must divide {where}{groups}")


class PPOConfig(PolicyConfig):
    """A PPO run. ``checkpoint.start`` is the actor's and the reference's."""

    stage: ClassVar[str] = "ppo"
    has_critic: ClassVar[bool] = True
    run: RunConfig = RunConfig(folder="runs/ppo")
    critic_learning_rate: float = Field(
        0.0, ge=0, description="peak learning rate of the critic; 0: the actor's"
    )
    critic_shares_base: bool = Field(
        False,
        description="whether the critic has the actor's frozen weights instead of a copy of its "
        "own; needs lora.rank, and a reward model that is adapters of checkpoint.start, or none",
    )
    reward: RewardConfig = RewardConfig()
    update: UpdateConfig = UpdateConfig()

    def settled_in(self, measure: Measure, total: int) -> "PPOConfig":
        """See :class:`StageConfig`."""
        alone = measure.settled(self.update.critic_alone, "update.critic_alone")
        update = self.update.model_copy(update={"critic_alone": alone})
        return super().settled_in(measure, total).model_copy(update={"update": update})

    def check_inputs(self) -> None:
        """See :class:`PolicyConfig`."""
        super().check_inputs()
        if self.critic_shares_base:
            check_sharing(self.lora, self.train.compile)
            self.shared_start()

    def shared_start(self) -> StoredAdapters | None:
        """What a critic on the actor's base begins with; see :func:`shared_start`."""
        return shared_start(self.checkpoint.start, self.reward_model, self.lora)

    @property
    def kl_is_in_loss(self) -> bool:
        """See :class:`PolicyConfig`."""
        return self.kl.place == "loss"


class GRPOConfig(PolicyConfig):
    """A GRPO run. ``checkpoint.start`` is the actor's and the reference's."""

    stage: ClassVar[str] = "grpo"
    run: RunConfig = RunConfig(folder="runs/grpo")
    advantage: AdvantageConfig = AdvantageConfig()
    rollout: GroupRolloutConfig = GroupRolloutConfig()
    update: GroupUpdateConfig = GroupUpdateConfig()

    @property
    def answers_each(self) -> int:
        """See :class:`PolicyConfig`."""
        return self.rollout.answers

    @property
    def kl_is_in_loss(self) -> bool:
        """See :class:`PolicyConfig`."""
        if self.kl.place == "own":
            return self.advantage.kind in ("grpo", "dr_grpo")
        return self.kl.place == "loss"

    @property
    def learning(self) -> GroupLearning:
        """How groups are learned from."""
        update, kind = self.update, self.advantage.kind
        mean = LOSS_MEANS[kind] if update.loss_mean == "own" else update.loss_mean
        return GroupLearning(
            self.reward,
            kind,
            self.rollout.answers,
            mean,
            self.rollout.max_new_tokens,
            update.leave_out_cut,
            update.leave_out_equal,
        )

    def check_sources(self) -> None:
        """See :class:`PolicyConfig`."""
        kind, count = self.advantage.kind, self.rollout.answers
        if count == 1 and kind != "reinforce_pp":
            raise ConfigError(
                f"--rollout.answers 1: advantage.kind {kind} compares answers to one prompt: give "
                "2 or more, or advantage.kind reinforce_pp"
            )
        if count == 1 and (self.rollout.redraws or self.update.leave_out_equal):
            raise ConfigError(
                "--rollout.answers 1: a group of one answer is always equal: rollout.redraws and "
                "update.leave_out_equal need 2 or more"
            )
        if self.train.spikes.policy == "skip":
            raise ConfigError(
                "--train.spikes.policy skip: drops the one update of a step; GRPO may have many: "
                "use warn or rollback"
            )
        super().check_sources()
