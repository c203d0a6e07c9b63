"""The four models of PPO: two that learn, and two that stay as the others start."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from megalite.engine.base import Base, Judging
from megalite.engine.lora import NO_LORA, LoRAConfig
from megalite.engine.model import Model
from megalite.models.batch import Batch
from megalite.models.outputs import LogProbs, Values
from megalite.stages.rlhf.config import PPOConfig
from megalite.stages.rlhf.rollout import LocalModels
from megalite.stages.setup import Stage


@dataclass(frozen=True)
class TrainedModels:
    """The two models that learn.

    Attributes:
        actor: writes the answers.
        critic: says what each row's answer will be worth.
    """

    actor: Model
    critic: Model

    @classmethod
    def build(cls, stage: Stage, config: PPOConfig, lora: LoRAConfig = NO_LORA) -> "TrainedModels":
        """Build actor and critic, without dropout; ``lora`` are the adapters of both.

        The critic starts as the reward model; without one as the actor, with a head of its own.
        """
        actor = stage.model(config.model.without_dropout(), config.checkpoint.start, lora=lora)
        of_critic = config.reward_model or config.checkpoint.start
        needs_head = bool(config.reward_model)
        critic = stage.model(config.critic().without_dropout(), of_critic, needs_head, lora)
        return cls(actor, critic)


@dataclass(frozen=True)
class ReferenceModels:
    """The two models that don't learn.

    Attributes:
        reference: the actor as it started.
        reward: scores answers; None: rules alone do.
    """

    reference: Judging
    reward: Judging | None

    @classmethod
    def of(cls, stage: Stage, config: PPOConfig, trained: TrainedModels) -> "ReferenceModels":
        """What actor and critic start as: with adapters themselves without them, else copies.

        Called before they learn, or go on from what they have learned.
        """
        if config.lora.rank:
            reward = Base(trained.critic) if config.reward_model else None
            return cls(Base(trained.actor), reward)
        return cls.build(stage, config)

    @classmethod
    def build(cls, stage: Stage, config: PPOConfig) -> "ReferenceModels":
        """Build the reference, and the reward model if there is one; they are frozen."""
        reference = _frozen(stage.model(config.model.without_dropout(), config.checkpoint.start))
        if not config.reward_model:
            return cls(reference, None)
        shape = config.critic().without_dropout()
        return cls(reference, _frozen(stage.model(shape, config.reward_model, needs_head=True)))

    def judges(self, temperature: float) -> LocalModels:
        """What judges answers that are drawn at a temperature."""
        reward = None if self.reward is None else values_of(self.reward)
        return LocalModels(log_probs_of(self.reference, temperature), reward, drop=self._drop)

    def _drop(self) -> None:
        for model in filter(None, (self.reference, self.reward)):
            model.reshard()


def _frozen(model: Model) -> Model:
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
