"""The models of PPO and GRPO: those that learn, and those that stay as the others start."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from megalite.engine.base import Base, Judging
from megalite.engine.guests import Guest
from megalite.engine.lora import NO_LORA, LoRAConfig
from megalite.engine.model import Model
from megalite.models.batch import Batch
from megalite.models.config import ModelConfig
from megalite.models.outputs import LogProbs, Values
from megalite.stages.rlhf.config import PolicyConfig, PPOConfig
from megalite.stages.rlhf.rollout import LocalModels
from megalite.stages.rlhf.sharing import fill_scorer, guests_of
from megalite.stages.setup import Stage


@dataclass(frozen=True)
class TrainedModels:
    """The models that learn.

    Attributes:
        actor: writes the answers.
        critic: says what each row's answer will be worth; None: answers are compared with others.
        scorer: the reward model that a critic on the actor's base started as; None: of others.
    """

    actor: Model
    critic: Model | None
    scorer: Judging | None = None

    @classmethod
    def build(
        cls, stage: Stage, config: PolicyConfig, lora: LoRAConfig = NO_LORA
    ) -> "TrainedModels":
        """Build the actor, and the critic if there is one, without dropout.

        ``lora`` are the adapters of both. The critic starts as the reward model; without one as the
        actor, with a head of its own.
        """
        shape = config.value_model() if config.has_critic else None
        if shape is not None and isinstance(config, PPOConfig) and config.critic_shares_base:
            return cls._on_one_base(stage, config, shape.without_dropout())
        actor = stage.model(config.model.without_dropout(), config.checkpoint.start, lora=lora)
        if shape is None:
            return cls(actor, None)
        start, needs_head = (
            config.reward_model or config.checkpoint.start,
            bool(config.reward_model),
        )
        return cls(actor, stage.model(shape.without_dropout(), start, needs_head, lora))

    @classmethod
    def _on_one_base(cls, stage: Stage, config: PPOConfig, shape: ModelConfig) -> "TrainedModels":
        """Both with the frozen weights of ``checkpoint.start``, which are in memory once."""
        lora, begins = config.lora, config.shared_start()
        guests = guests_of(shape, lora, begins)
        model = config.model.without_dropout()
        actor = stage.model(model, config.checkpoint.start, lora=lora, guests=guests)
        *scorers, critic = (Guest(actor, own, [g.name for g in guests[:-1]]) for own in guests)
        if begins is None:
            return cls(actor, critic)
        (scorer,) = scorers
        fill_scorer(begins, scorer, critic, stage.checkers)
        return cls(actor, critic, scorer)


@dataclass(frozen=True)
class ReferenceModels:
    """The models that don't learn.

    Attributes:
        reference: the actor as it started.
        rewards: the reward models, in the order of the config; none: rules alone score answers.
    """

    reference: Judging
    rewards: Sequence[Judging] = ()

    @classmethod
    def of(cls, stage: Stage, config: PolicyConfig, trained: TrainedModels) -> "ReferenceModels":
        """What actor and critic start as: with adapters themselves without them, else copies.

        Called before they learn, or go on from what they have learned.
        """
        if not config.lora.rank:
            return cls.build(stage, config)
        critic = trained.critic if config.reward_model else None
        rewards = [] if critic is None else [trained.scorer or Base(critic)]
        return cls(Base(trained.actor), [*rewards, *cls._rewards(stage, config, len(rewards))])

    @classmethod
    def build(cls, stage: Stage, config: PolicyConfig) -> "ReferenceModels":
        """Build the reference and the reward models; they are frozen."""
        shape, lora = config.model.without_dropout(), config.lora.base_alone()
        reference = frozen(stage.model(shape, config.checkpoint.start, lora=lora))
        return cls(reference, cls._rewards(stage, config))

    @staticmethod
    def _rewards(stage: Stage, config: PolicyConfig, first: int = 0) -> list[Model]:
        """The reward models from number ``first`` on, frozen; held as the actor's base is."""
        lora, shapes = config.lora.base_alone(), config.shapes_of_reward_models()
        starts = list(config.reward_models().values())
        pairs = list(zip(shapes, starts, strict=True))[first:]
        return [
            frozen(stage.model(shape.without_dropout(), start, needs_head=True, lora=lora))
            for shape, start in pairs
        ]

    def judges(self, temperature: float) -> LocalModels:
        """What judges answers that are drawn at a temperature."""
        rewards = [values_of(reward) for reward in self.rewards]
        return LocalModels(log_probs_of(self.reference, temperature), rewards, drop=self._drop)

    def _drop(self) -> None:
        for model in (self.reference, *self.rewards):
            model.reshard()


def frozen(model: Model) -> Model:
    """The model, none of whose parameters learns."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def log_probs_of(model: Judging, temperature: float) -> Callable[[Batch], Tensor]:
    """The log-probabilities of a batch's labels under a model, [B, S]."""
    output = LogProbs(temperature)

    def log_probs(batch: Batch) -> Tensor:
        ((found, _entropy),) = model.evaluate([batch], output)
        return found

    return log_probs


def values_of(model: Judging) -> Callable[[Batch], Tensor]:
    """The values of a batch's rows under a model, [B, S]."""

    def values(batch: Batch) -> Tensor:
        (found,) = model.evaluate([batch], Values())
        return found

    return values
