"""A step of PPO: a rollout, the experience that it makes, and updates of actor and critic."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from megalite.config.amount import in_samples
from megalite.config.course import value_at
from megalite.data.chat.datasets import Prompts
from megalite.data.loader import passes_over
from megalite.distributed.sums import Counts, sum_metrics
from megalite.engine.model import Item, Task
from megalite.generation.prompts import Prompt
from megalite.models.outputs import LogProbs, Loss, Output, Values
from megalite.ops.random import fold
from megalite.stages.rlhf.answers import Answered
from megalite.stages.rlhf.config import PPOConfig
from megalite.stages.rlhf.experience import Experience, Judgement, gather_experience
from megalite.stages.rlhf.kl import adapt
from megalite.stages.rlhf.models import TrainedModels, log_probs_of, values_of
from megalite.stages.rlhf.responses import Responses
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
from megalite.stages.samples import decode_with
from megalite.stages.setup import Stage
from megalite.training.learner import TARGETS, Learner, Update
from megalite.training.progress import Progress, StepResult

FIRST_CHANGE = f"first_{LOG_PROB_CHANGE}"
KL_COEFFICIENT = "kl_coefficient"  # its name among the metrics and in checkpoints

PromptItem = tuple[Sequence[Prompt], Sequence[int]]  # prompts, their numbers in the run's order


@dataclass(frozen=True)
class PPOStep:
    """What a step of PPO works with.

    Attributes:
        config: of the run.
        stage: of this process.
        models: that learn.
        learners: of the actor and of the critic.
        frozen: the models that don't learn.
        special_tokens: of answers.
        text: that the actor learns beside its answers, or None.
        rules: that score answers, or None.
    """

    config: PPOConfig
    stage: Stage
    models: TrainedModels
    learners: Sequence[Learner]
    frozen: FrozenModels
    special_tokens: SpecialTokens
    text: Text | None = None
    rules: Rules | None = None

    def __call__(self, items: Sequence[PromptItem], progress: Progress) -> StepResult:
        """Do one rollout and its updates."""
        started = time.perf_counter()
        config, mesh = self.config, self.stage.mesh
        self.stage.heartbeat.enter("rollout", self.models.actor)
        prompts = [prompt for part, _ in items for prompt in part]
        ids = [number for _, numbers in items for number in numbers]
        coefficient = self._coefficient(progress)
        responses, judged = self.roll(prompts, ids, fold(config.run.seed, progress.step))
        experience, means = gather_experience(judged, config.reward, coefficient, mesh.dp)
        metrics = {name: float(value) for name, value in means.items()}
        metrics["rollout_s"] = time.perf_counter() - started
        updated = self._update(responses, experience, progress)
        gap = updated.pop(FIRST_CHANGE, None)
        if (
            config.rollout.reuse_log_probs and gap is not None
        ):  # the first pass over the answers tells it instead
            metrics["rollout_gap"] = gap
        metrics |= updated
        metrics[KL_COEFFICIENT] = coefficient
        size = config.train.ramp.at(progress.consumed_samples)
        metrics["tokens"] = metrics["response_tokens"] * size
        return StepResult(
            metrics,
            extra={KL_COEFFICIENT: adapt(config.kl, coefficient, metrics["kl"], size)},
            asked_to_stop=self.frozen.asked_to_stop,
        )

    def _coefficient(self, progress: Progress) -> float:
        """The penalty per nat of this step."""
        told = self.config.kl.coefficient
        if isinstance(told, dict):
            return value_at(told, progress.consumed_samples, self.learners[0].total_samples)
        return progress.extra.get(KL_COEFFICIENT, told)

    def _actor_learns(self, progress: Progress) -> bool:
        """Whether the critic does not learn alone in this step."""
        total = self.learners[0].total_samples
        return progress.consumed_samples >= in_samples(self.config.update.critic_alone, total)

    def roll(
        self, prompts: Sequence[Prompt], ids: Sequence[int], seed: int
    ) -> tuple[Responses, Judgement]:
        """Answer prompts and judge the answers."""
        models, config = self.models, self.config
        judges = Judges(
            decode_with(models.actor),
            log_probs_of(models.actor, config.rollout.temperature),
            values_of(models.critic),
            self.frozen,
            self.stage.mesh.device,
            self._scoring(),
        )
        with models.actor.gathered():
            found = rollout(judges, prompts, ids, config.rollout, seed, self.special_tokens)
        models.critic.reshard()
        return found

    def _scoring(self) -> Scoring | None:
        """How rules take part in the scores; None without any."""
        if self.rules is None:
            return None
        weight = self.config.reward.model_weight if self.config.reward_model else None
        return Scoring(self.rules, self.stage.mesh, weight)

    def _update(
        self, responses: Responses, experience: Experience, progress: Progress
    ) -> dict[str, float]:
        """All passes over the answers; the mean of their metrics, and the first one's change."""
        mesh, update = self.stage.mesh, self.config.update
        seed, size = (
            fold(self.config.run.seed, progress.step, 1),
            self.config.train.micro_batch_size,
        )
        answered = Answered(responses.batch, experience)
        if update.mini_batches > 1:
            answered = answered.gathered(mesh.dp)
        updates: list[tuple[Update, ...]] = []
        for one_pass in mini_batches(len(answered.experience.mask), update, seed):
            for chosen in one_pass:
                items, count = answered.micro_batches(chosen, size, mesh.device)
                counts = Counts({TARGETS: count}, mesh.dp, mesh.device)
                both = (self._update_actor, self._update_critic)
                learns = both if self._actor_learns(progress) else both[1:]
                updates.append(tuple(update(items, counts, progress) for update in learns))
        metrics = [_of_updates(each) for each in updates]
        means = {name: sum(m[name] for m in metrics) / len(metrics) for name in metrics[0]}
        if LOG_PROB_CHANGE in means:
            del means[LOG_PROB_CHANGE]
            means[FIRST_CHANGE] = metrics[0][LOG_PROB_CHANGE]
        return means

    def _update_actor(self, items: Sequence[Item], counts: Counts, progress: Progress) -> Update:
        update, temperature = self.config.update, self.config.rollout.temperature
        loss = self.config.loss()
        of_text: Output = LogProbs() if loss == Loss() else loss
        return self.learners[0].begin(
            [*items, *self._pretraining(progress)],
            lambda scale: Task(
                LogProbs(temperature), PolicyLoss(update.clip, scale), {Pretraining: of_text}
            ),
            counts,
            progress.consumed_samples,
        )

    def _update_critic(self, items: Sequence[Item], counts: Counts, progress: Progress) -> Update:
        clip = self.config.update.value_clip
        return self.learners[1].begin(
            items,
            lambda scale: Task(Values(), ValueLoss(clip, scale)),
            counts,
            progress.consumed_samples,
        )

    def _pretraining(self, progress: Progress) -> list[Item]:
        """Micro-batches of pretraining text beside the answers (PPO-ptx)."""
        text, mesh = self.text, self.stage.mesh
        if text is None:
            return []
        loader = self.stage.loader(text.samples, text.make, progress, text.seed)
        batches = loader.read(progress.consumed_samples)
        own = {TARGETS: sum(batch.num_targets for batch in batches)}
        counts = Counts(own, mesh.dp, mesh.device)
        scale = counts.share(TARGETS, self.config.update.pretrain_coefficient)
        return [(batch, Pretraining(scale)) for batch in batches]

    def evaluate(self, prompts: Prompts) -> dict[str, float]:
        """Mean reward and KL of answers to held-out prompts, drawn with one seed throughout.

        Each prompt counts once over all ranks, which answer equally many: the last answer of a rank
        may be one that doesn't count.
        """
        mesh, train = self.stage.mesh, self.config.train
        count = min(train.evaluate_samples, len(prompts))
        each = -(-count // mesh.dp.size)
        (own,) = passes_over(count, each, mesh.dp.rank, mesh.dp.size)
        numbers = own + [0] * (each - len(own))
        chosen = [prompts[number] for number in numbers]
        _, judged = self.roll(chosen, numbers, fold(self.config.run.seed, 3))
        kl = torch.where(judged.mask, judged.log_probs - judged.reference_log_probs, 0.0)
        scores = judged.scores[: len(own)].double()
        sums = {
            "reward": scores.sum(),
            "square": scores.square().sum(),
            "kl": kl[: len(own)].sum(),
            "count": torch.tensor(float(len(own))),
        }
        total = sum_metrics({n: v.to(mesh.device) for n, v in sums.items()}, mesh.dp)
        mean = total["reward"] / total["count"]
        variance = max(total["square"] / total["count"] - mean * mean, 0.0)
        return {
            "heldout_reward": mean,
            "heldout_reward_deviation": variance**0.5,
            "heldout_kl": total["kl"] / total["count"],
        }


def _of_updates(updates: Sequence[Update]) -> dict[str, float]:
    """The metrics of an update of actor and critic, or of the critic alone."""
    *actor, critic = [update.metrics() for update in updates]
    shown = _of_critic(critic)
    return {**actor[0], **shown} if actor else shown | {"learning_rate": critic["learning_rate"]}


def _of_critic(metrics: dict[str, float]) -> dict[str, float]:
    """What a step shows of the critic's update."""
    shown = {name: value for name, value in metrics.items() if name.startswith("value")}
    return shown | {"critic_grad_norm": metrics["grad_norm"]}
