"""A step of PPO or GRPO: a rollout, the experience that it makes, and updates of what learns."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from megalite.config.amount import in_samples
from megalite.config.course import value_at
from megalite.data.chat.datasets import Prompts
from megalite.distributed.sums import Counts
from megalite.engine.model import Item, Task
from megalite.generation.prompts import Prompt
from megalite.models.outputs import LogProbs, Loss, Output, Scale, Values
from megalite.seeds import fold
from megalite.stages.rlhf.answers import Answered
from megalite.stages.rlhf.config import GRPOConfig, PolicyConfig, PPOConfig
from megalite.stages.rlhf.experience import Experience, Judgement, gather_experience
from megalite.stages.rlhf.groups import group_experience
from megalite.stages.rlhf.heldout import measure_answers
from megalite.stages.rlhf.kl import adapt
from megalite.stages.rlhf.models import TrainedModels, log_probs_of, values_of
from megalite.stages.rlhf.redraw import Rolled, in_groups, redraw
from megalite.stages.rlhf.rollout import FrozenModels, Judges, SpecialTokens, rollout
from megalite.stages.rlhf.scoring import Scoring
from megalite.stages.rlhf.text import Text
from megalite.stages.rlhf.updates import (
    LOG_PROB_CHANGE,
    PolicyLoss,
    Pretraining,
    ValueLoss,
    mini_batches,
)
from megalite.stages.rules.scores import Rules
from megalite.stages.samples import bubble_of_answers, decode_with
from megalite.stages.setup import Stage
from megalite.training.learner import TARGETS, Learner, Update
from megalite.training.progress import Progress, StepResult

FIRST_CHANGE = f"first_{LOG_PROB_CHANGE}"
KL_COEFFICIENT = "kl_coefficient"  # its name among the metrics and in checkpoints
TOKENS = "tokens"  # in an update's counts: what its metrics are means of

PromptItem = tuple[Sequence[Prompt], Sequence[int]]  # prompts, their numbers in the run's order


@dataclass(frozen=True)
class PolicyStep:
    """What a step of PPO or GRPO works with.

    Attributes:
        config: of the run.
        stage: of this process.
        models: that learn.
        learners: of the actor, and of the critic if there is one.
        frozen: the models that don't learn.
        special_tokens: of answers.
        text: that the actor learns beside its answers, or None.
        rules: that score answers, or None.
        prompts: that stand in for those whose groups have equal scores, where they do.
    """

    config: PolicyConfig
    stage: Stage
    models: TrainedModels
    learners: Sequence[Learner]
    frozen: FrozenModels
    special_tokens: SpecialTokens
    text: Text | None = None
    rules: Rules | None = None
    prompts: Prompts | None = None

    def __call__(self, items: Sequence[PromptItem], progress: Progress) -> StepResult:
        """Do one rollout and its updates."""
        started = time.perf_counter()
        config = self.config
        self.stage.heartbeat.enter("rollout", self.models.actor)
        coefficient = self._coefficient(progress)
        (batch, judged), counted = self._rolled(items, progress)
        bubble = bubble_of_answers(self.models.actor)
        experience, means = self._experience(judged, coefficient)
        metrics = {name: float(value) for name, value in means.items()} | counted
        self._say_what_is_not_finite(metrics)
        if bubble is not None:
            metrics["rollout_bubble"] = bubble
        metrics["rollout_s"] = time.perf_counter() - started
        updated = self._update(Answered(batch, experience), progress, coefficient)
        gap = updated.pop(FIRST_CHANGE, None)
        if config.rollout.reuse_log_probs and gap is not None:  # the first pass tells it instead
            metrics["rollout_gap"] = gap
        metrics |= updated
        metrics[KL_COEFFICIENT] = coefficient
        size = config.train.ramp.at(progress.consumed_samples) * config.answers_each
        metrics["tokens"] = metrics["response_tokens"] * size
        return StepResult(
            metrics,
            extra={KL_COEFFICIENT: adapt(config.kl, coefficient, metrics["kl"], size)},
            asked=self.frozen.asked(),
        )

    def _say_what_is_not_finite(self, means: Mapping[str, float]) -> None:
        """Name the scores for which a step will be dropped: its gradients won't tell."""
        names = [name for name, value in means.items() if not math.isfinite(value)]
        if names:
            self.stage.log.say(
                f"step {self.stage.heartbeat.step}: {', '.join(names)} of its answers: not finite, "
                "and nothing is learned from such: look at the weights and the number format of "
                "the models that say so"
            )

    def _coefficient(self, progress: Progress) -> float:
        """The penalty per nat of this step."""
        told = self.config.kl.coefficient
        if isinstance(told, dict):
            return value_at(told, progress.consumed_samples, self.learners[0].total_samples)
        return progress.extra.get(KL_COEFFICIENT, told)

    def _actor_learns(self, progress: Progress) -> bool:
        """Whether the critic does not learn alone in this step."""
        if not isinstance(self.config, PPOConfig):
            return True
        total = self.learners[0].total_samples
        return progress.consumed_samples >= in_samples(self.config.update.critic_alone, total)

    def _rolled(
        self, items: Sequence[PromptItem], progress: Progress
    ) -> tuple[Rolled, dict[str, float]]:
        """This rank's answers of a step, and what was counted on the way."""
        config, seed = self.config, fold(self.config.run.seed, progress.step)
        rolled = self.roll(*_asked(items, config.answers_each), seed)
        if not (isinstance(config, GRPOConfig) and config.rollout.redraws and self.prompts):
            return rolled, {}
        prompts, how = self.prompts, config.learning

        def roll(places: Sequence[int], number: int) -> Rolled:
            order = fold(config.run.seed, 4, number)
            loader = self.stage.loader(prompts, keep_apart, progress, order, size=1)
            others = loader.read(progress.consumed_samples)
            asked = _asked([others[place] for place in places], how.size)
            return self.roll(*asked, fold(seed, number))

        rolled, count = redraw(rolled, roll, config.rollout.redraws, how, self.stage.mesh.dp)
        return rolled, {"redrawn_groups": count}

    def _experience(
        self, judged: Judgement, coefficient: float
    ) -> tuple[Experience, dict[str, torch.Tensor]]:
        config, axis = self.config, self.stage.mesh.dp
        of_reward = 0.0 if config.kl_is_in_loss else coefficient
        if isinstance(config, GRPOConfig):
            return group_experience(judged, config.learning, of_reward, axis)
        assert isinstance(config, PPOConfig)
        return gather_experience(judged, config.reward, of_reward, axis)

    def roll(self, prompts: Sequence[Prompt], ids: Sequence[int], seed: int) -> Rolled:
        """Answer prompts and judge the answers."""
        models, config = self.models, self.config
        judges = Judges(
            decode_with(models.actor),
            log_probs_of(models.actor, config.rollout.temperature),
            None if models.critic is None else values_of(models.critic),
            self.frozen,
            self.stage.mesh.device,
            self._scoring(),
        )
        with models.actor.gathered():
            tokens = self.special_tokens
            responses, judged = rollout(judges, prompts, ids, config.rollout, seed, tokens)
        if models.critic is not None:
            models.critic.reshard()
        return responses.batch, judged

    def _scoring(self) -> Scoring | None:
        """How several scores become one; None where the reward model's is the only one."""
        config = self.config
        if self.rules is None and not config.reward.models:
            return None
        models, guard = config.weights_of_reward_models(), config.reward.guard
        return Scoring(self.stage.mesh, models, self.rules, guard)

    def _update(
        self, answered: Answered, progress: Progress, coefficient: float
    ) -> dict[str, float]:
        """All passes over the answers; the mean of their metrics, and the first one's change."""
        mesh, update = self.stage.mesh, self.config.update
        seed, size = (
            fold(self.config.run.seed, progress.step, 1),
            self.config.train.micro_batch_size,
        )
        if update.mini_batches > 1:
            answered = answered.gathered(mesh.dp)
        updates: list[list[Update]] = []
        for one_pass in mini_batches(len(answered.experience.mask), update, seed):
            for chosen in one_pass:
                items, count = answered.micro_batches(chosen, size, mesh.device)
                counts = Counts(self._counts(items, count), mesh.dp, mesh.device)
                both: list[Update] = []
                if self._actor_learns(progress):
                    learned = [*items, *self._pretraining(progress, len(updates))]
                    both.append(self._update_actor(learned, counts, progress, coefficient))
                updates.append(both + self._update_critic(items, counts, progress))
        metrics = [_of_updates(each) for each in updates]
        seen = [one for one in metrics if one.get("ratio")] or metrics  # 0: of answers left out
        means = {name: sum(m[name] for m in seen) / len(seen) for name in metrics[0]}
        if LOG_PROB_CHANGE in means:
            del means[LOG_PROB_CHANGE]
            means[FIRST_CHANGE] = metrics[0][LOG_PROB_CHANGE]
        return means

    def _counts(self, items: Sequence[Item], tokens: int) -> dict[str, float]:
        """What this rank's part of an update's loss, and of its metrics, is divided by."""
        config = self.config
        if not isinstance(config, GRPOConfig) or config.learning.loss_mean == "token":
            return {TARGETS: tokens, TOKENS: tokens}
        return {TARGETS: sum(experience.num_answers for _, experience in items), TOKENS: tokens}

    def _update_actor(
        self, items: Sequence[Item], counts: Counts, progress: Progress, coefficient: float
    ) -> Update:
        config, of_loss = self.config, coefficient if self.config.kl_is_in_loss else 0.0
        text = config.loss()
        of_text: Output = LogProbs() if text == Loss() else text

        def task(scale: Scale) -> Task:
            token_scale = counts.share(TOKENS)
            loss = PolicyLoss(config.update.bounds, scale, token_scale, of_loss)
            return Task(LogProbs(config.rollout.temperature), loss, {Pretraining: of_text})

        return self.learners[0].begin(items, task, counts, progress.consumed_samples)

    def _update_critic(
        self, items: Sequence[Item], counts: Counts, progress: Progress
    ) -> list[Update]:
        """The critic's update; none without one."""
        if not isinstance(self.config, PPOConfig):
            return []
        clip, consumed = self.config.update.value_clip, progress.consumed_samples

        def task(scale: Scale) -> Task:
            return Task(Values(), ValueLoss(clip, scale))

        return [self.learners[1].begin(items, task, counts, consumed)]

    def _pretraining(self, progress: Progress, number: int) -> list[Item]:
        """Micro-batches of pretraining text beside the answers (PPO-ptx) of a step's update.

        Each update has text of its own: the text's order goes on by a batch an update.
        """
        text, mesh, config = self.text, self.stage.mesh, self.config
        if text is None:
            return []
        loader = self.stage.loader(text.samples, text.make, progress, text.seed)
        consumed, updates = (
            progress.consumed_samples,
            config.update.epochs * config.update.mini_batches,
        )
        begin = consumed * updates + number * config.train.ramp.at(consumed)
        batches = loader.read(consumed, begin)
        own = {TARGETS: sum(batch.num_targets for batch in batches)}
        counts = Counts(own, mesh.dp, mesh.device)
        scale = counts.share(TARGETS, config.update.pretrain_coefficient)
        return [(batch, Pretraining(scale)) for batch in batches]

    def evaluate(self, prompts: Prompts) -> dict[str, float]:
        """What answers to held-out prompts are like; see :func:`measure_answers`."""
        config = self.config
        samples, each = config.train.evaluate_samples, config.rollout.heldout_answers
        seed, mesh = config.run.seed, self.stage.mesh
        return measure_answers(self.roll, prompts, samples, each, seed, mesh)


def _of_updates(updates: Sequence[Update]) -> dict[str, float]:
    """The metrics of an update of the actor, of actor and critic, or of the critic alone."""
    found = {update.learner.name: update.metrics() for update in updates}
    critic = found.pop("critic", None)
    if critic is None:
        return next(iter(found.values()))
    shown = _of_critic(critic)
    rate = {"learning_rate": critic["learning_rate"]}
    return next(iter(found.values()), rate) | shown


def _asked(items: Sequence[PromptItem], answers: int) -> tuple[list[Prompt], list[int]]:
    """The prompts of some items, each as often as it is answered, and a number for each answer."""
    prompts = [prompt for part, _ in items for prompt in part]
    return in_groups(prompts, [number for _, numbers in items for number in numbers], answers)


def keep_apart(prompts: Sequence[Prompt], sample_ids: Sequence[int]) -> PromptItem:
    """Prompts become a batch only when they are answered."""
    return prompts, sample_ids


def _of_critic(metrics: dict[str, float]) -> dict[str, float]:
    """What a step shows of the critic's update."""
    shown = {name: value for name, value in metrics.items() if name.startswith("value")}
    return shown | {"critic_grad_norm": metrics["grad_norm"]}
