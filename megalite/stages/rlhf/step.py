"""A step of PPO: a rollout, the experience that it makes, and updates of actor and critic."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from megalite.data.chat.datasets import Prompts
from megalite.distributed.sums import sum_count, sum_metrics
from megalite.engine.model import Item, Task
from megalite.generation.prompts import Prompt
from megalite.models.outputs import LogProbs, Values
from megalite.ops.random import fold
from megalite.stages.corpus import blend_stores, store_opener, text_batch
from megalite.stages.rlhf.config import PPOConfig
from megalite.stages.rlhf.experience import Experience, Judgement, gather_experience
from megalite.stages.rlhf.kl import adapt
from megalite.stages.rlhf.models import TrainedModels, log_probs_of, values_of
from megalite.stages.rlhf.responses import Responses
from megalite.stages.rlhf.rollout import FrozenModels, Judges, SpecialTokens, rollout
from megalite.stages.rlhf.updates import PolicyLoss, Pretraining, ValueLoss, mini_batches
from megalite.stages.samples import decode_with
from megalite.stages.setup import Stage
from megalite.training.learner import Learner
from megalite.training.progress import Progress, StepResult

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
    """

    config: PPOConfig
    stage: Stage
    models: TrainedModels
    learners: Sequence[Learner]
    frozen: FrozenModels
    special_tokens: SpecialTokens

    def __call__(self, items: Sequence[PromptItem], progress: Progress) -> StepResult:
        """Do one rollout and its updates."""
        started = time.perf_counter()
        config, mesh = self.config, self.stage.mesh
        self.stage.heartbeat.enter("rollout", self.models.actor)
        prompts = [prompt for part, _ in items for prompt in part]
        ids = [number for _, numbers in items for number in numbers]
        coefficient = progress.extra.get(KL_COEFFICIENT, config.kl.coefficient)
        responses, judged = self.roll(prompts, ids, fold(config.run.seed, progress.step))
        experience, means = gather_experience(judged, config.reward, coefficient, mesh.dp)
        metrics = {name: float(value) for name, value in means.items()}
        metrics["rollout_s"] = time.perf_counter() - started
        metrics |= self._update(responses, experience, progress)
        metrics[KL_COEFFICIENT] = coefficient
        size = config.train.global_batch_size
        metrics["tokens"] = metrics["response_tokens"] * size
        return StepResult(
            metrics,
            extra={KL_COEFFICIENT: adapt(config.kl, coefficient, metrics["kl"], size)},
            asked_to_stop=self.frozen.asked_to_stop,
        )

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
        )
        with models.actor.gathered():
            return rollout(judges, prompts, ids, config.rollout, seed, self.special_tokens)

    def _update(
        self, responses: Responses, experience: Experience, progress: Progress
    ) -> dict[str, float]:
        """All passes over the answers; the mean of their metrics."""
        seed = fold(self.config.run.seed, progress.step, 1)
        metrics: list[dict[str, float]] = []
        for one_pass in mini_batches(len(experience.mask), self.config.update, seed):
            for chosen in one_pass:
                items = self.micro_batches(responses, experience, chosen)
                count = int(experience.mask[chosen].sum())
                actor = self._update_actor(items, count, progress)
                metrics.append(actor | self._update_critic(items, count, progress))
        return {name: sum(m[name] for m in metrics) / len(metrics) for name in metrics[0]}

    def micro_batches(
        self, responses: Responses, experience: Experience, chosen: Tensor
    ) -> list[Item]:
        """The answers of a mini-batch, [B'] int64, with their experience."""
        size = self.config.train.micro_batch_size
        return [
            (responses.batch.select(part), experience.select(part))
            for part in chosen.to(responses.mask.device).split(size)
        ]

    def _update_actor(
        self, items: Sequence[Item], count: int, progress: Progress
    ) -> dict[str, float]:
        update, temperature = self.config.update, self.config.rollout.temperature
        more = self._pretraining(progress) if update.pretrain_coefficient else []
        return self.learners[0].step(
            [*items, *more],
            lambda scale: Task(LogProbs(temperature), PolicyLoss(update.clip, scale)),
            count,
            progress.consumed_samples,
        )

    def _update_critic(
        self, items: Sequence[Item], count: int, progress: Progress
    ) -> dict[str, float]:
        clip = self.config.update.value_clip
        metrics = self.learners[1].step(
            items,
            lambda scale: Task(Values(), ValueLoss(clip, scale)),
            count,
            progress.consumed_samples,
        )
        return {k: v for k, v in metrics.items() if k.startswith("value")} | {
            "critic_grad_norm": metrics["grad_norm"]
        }

    def _pretraining(self, progress: Progress) -> list[Item]:
        """Micro-batches of pretraining text beside the answers (PPO-ptx)."""
        config, mesh = self.config, self.stage.mesh
        text, seed = config.pretraining, fold(config.run.seed, 2)
        open_store = store_opener(text, config.tokenizer, config.model, seed)
        data = blend_stores(open_store, text.train, text.weights)
        make = partial(text_batch, data=text, model=config.model)
        batches = self.stage.loader(data, make, progress, seed).read(progress.consumed_samples)
        targets = sum_count(sum(b.num_targets for b in batches), mesh.dp, mesh.device)
        scale = config.update.pretrain_coefficient / max(targets, 1.0)
        return [(batch, Pretraining(scale)) for batch in batches]

    def evaluate(self, prompts: Prompts) -> dict[str, float]:
        """Mean reward and KL of answers to held-out prompts, drawn with one seed throughout."""
        mesh, train = self.stage.mesh, self.config.train
        count = min(train.evaluate_samples, len(prompts)) // mesh.dp.size * mesh.dp.size
        own = range(mesh.dp.rank, max(count, mesh.dp.size), mesh.dp.size)
        chosen = [prompts[i % len(prompts)] for i in own]
        _, judged = self.roll(chosen, list(own), fold(self.config.run.seed, 3))
        kl = torch.where(judged.mask, judged.log_probs - judged.reference_log_probs, 0.0)
        sums = {
            "reward": judged.scores.sum(),
            "square": judged.scores.double().square().sum(),
            "kl": kl.sum(),
            "count": torch.tensor(float(len(chosen))),
        }
        total = sum_metrics({n: v.to(mesh.device) for n, v in sums.items()}, mesh.dp)
        mean = total["reward"] / total["count"]
        variance = max(total["square"] / total["count"] - mean * mean, 0.0)
        return {
            "heldout_reward": mean,
            "heldout_reward_deviation": variance**0.5,
            "heldout_kl": total["kl"] / total["count"],
        }
