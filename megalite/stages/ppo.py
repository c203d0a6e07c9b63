"""PPO: the actor answers prompts, a reward model scores them, actor and critic learn.

The trainer's loop with a rollout before each set of updates. Dropout is off throughout.

Source: Ouyang et al. 2022, arXiv:2203.02155; Schulman et al. 2017, arXiv:1707.06347.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from pydantic import Field

from megalite.data.chat.datasets import Prompts
from megalite.data.chat.templates import Chat
from megalite.data.config import ConversationConfig, CorpusConfig, TokenizerConfig
from megalite.data.loader import Loader
from megalite.data.structure import Structure
from megalite.distributed.launch import Launch
from megalite.distributed.sums import sum_count, sum_metrics
from megalite.engine.layout import Demand
from megalite.engine.model import Model, Task
from megalite.errors import ConfigError
from megalite.generation.prompts import Prompt
from megalite.models.batch import Batch
from megalite.models.outputs import LogProbs, Values
from megalite.ops.random import fold
from megalite.stages.conversation import (
    SamplesConfig,
    decode_with,
    open_chat,
    share_of,
    write_samples,
)
from megalite.stages.pretrain import rows, samples_of
from megalite.stages.rlhf.experience import Experience, RewardConfig, gather_experience
from megalite.stages.rlhf.kl import KLConfig, adapt
from megalite.stages.rlhf.placement import (
    Bridge,
    FrozenConfig,
    RemoteModels,
    Side,
    check_placement,
    remote_models,
    serve,
)
from megalite.stages.rlhf.responses import Responses
from megalite.stages.rlhf.rollout import (
    FrozenModels,
    Judges,
    RolloutConfig,
    Vocabulary,
    rollout,
)
from megalite.stages.rlhf.updates import (
    PolicyLoss,
    Pretraining,
    UpdateConfig,
    ValueLoss,
    mini_batches,
)
from megalite.stages.setup import Stage, StageConfig, set_up
from megalite.training.trainer import Learner, Trainer


class PPOConfig(StageConfig):
    """A PPO run. ``checkpoint.start`` is the actor's and the reference's."""

    tokenizer: TokenizerConfig = TokenizerConfig()
    data: ConversationConfig = ConversationConfig()
    samples: SamplesConfig = SamplesConfig()
    reward_model: str = Field("", description="checkpoint of the reward model; the critic's start")
    critic_learning_rate: float = Field(0.0, ge=0, description="peak; 0: the actor's")
    rollout: RolloutConfig = RolloutConfig()
    reward: RewardConfig = RewardConfig()
    kl: KLConfig = KLConfig()
    update: UpdateConfig = UpdateConfig()
    pretraining: CorpusConfig = CorpusConfig()
    frozen: FrozenConfig = FrozenConfig()


@dataclass(frozen=True)
class Models:
    """The models of PPO; the two that don't learn are None where other processes have them."""

    actor: Model
    critic: Model
    reference: Model | None = None
    reward: Model | None = None


def run(config: PPOConfig, launch: Launch) -> int:
    """Align a model."""
    data = config.data
    _check(config)
    chat, structure = open_chat(config.tokenizer, data, config.model)
    prompts = Prompts(data.train, chat, structure, data.sequence_length)
    heldout = Prompts(data.heldout, chat, structure, data.sequence_length) if data.heldout else None
    stage, bridge = _place(config, launch)
    with stage.watchdog:
        if bridge is None:
            models = Models(*_learning(stage, config), *_frozen(stage, config))
            _train(config, stage, models, (chat, structure), (prompts, heldout))
        elif launch.rank >= bridge.frozen.first:
            serve(_judging(*_frozen(stage, config), config), bridge, stage.heart)
        else:
            models = Models(*_learning(stage, config))
            with remote_models(bridge, stage.heart) as remote:
                _train(config, stage, models, (chat, structure), (prompts, heldout), remote)
    return 0


def _place(config: PPOConfig, launch: Launch) -> tuple[Stage, Bridge | None]:
    """Set up the stage, and the bridge where the frozen models have processes of their own."""
    train, frozen, updates = config.train, config.frozen, config.update.mini_batches
    sizes = train.global_batch_size, train.micro_batch_size, updates
    demand = Demand(config.model, launch.world_size, *sizes)
    check_placement(demand, config.parallel, frozen)
    if not frozen.processes:
        return set_up(config, launch, updates), None
    layout, first = frozen.layout(config.parallel), launch.world_size - frozen.processes
    stage = set_up(config, launch, updates, (frozen.processes, layout))
    sides = Side.of(0, first, config.parallel), Side.of(first, frozen.processes, layout)
    return stage, Bridge(*sides, stage.mesh)


def _train(
    config: PPOConfig,
    stage: Stage,
    models: Models,
    language: tuple[Chat, Structure],
    datasets: tuple[Prompts, Prompts | None],
    remote: RemoteModels | None = None,
) -> None:
    (chat, structure), (prompts, heldout) = language, datasets
    trainer, learners = stage.trainer(("actor", models.actor), ("critic", models.critic))
    if config.critic_learning_rate:
        learners[1].set_learning_rate(config.critic_learning_rate)
    trainer.resume()
    loop = _Loop(config, stage, models, learners, trainer, vocabulary_of(chat), remote)
    loader = Loader(
        prompts,
        lambda items, ids: (items, ids),
        share_of(config.train, stage.mesh),
        seed=config.run.seed,
        consumed_samples=trainer.progress.consumed_samples,
    )
    check = None
    if heldout is not None:

        def check() -> dict[str, float]:
            return loop.heldout(heldout)

    trainer.fit(loader, loop.step, check)
    write_samples(stage, models.actor, config.samples, chat, structure)


def _check(config: PPOConfig) -> None:
    if not config.data.train:
        raise ConfigError("--data.train: needs at least one file of prompts")
    for key, value in (
        ("checkpoint.start", config.checkpoint.start),
        ("reward_model", config.reward_model),
    ):
        if not value:
            raise ConfigError(f"--{key}: must name a checkpoint; PPO starts from trained models")
    if config.update.pretrain_coefficient and not config.pretraining.train:
        raise ConfigError("--pretraining.train: needs a store, as update.pretrain_coefficient > 0")
    own = config.train.global_batch_size
    if own % config.update.mini_batches:
        raise ConfigError(
            f"--update.mini_batches {config.update.mini_batches}: must divide "
            f"train.global_batch_size {own}"
        )


def vocabulary_of(chat: Chat) -> Vocabulary:
    """The special tokens of answers; padding differs from the end even where the tokenizer's is."""
    end = chat.tokenizer.end_id
    pad = chat.tokenizer.pad_id
    if end is None:
        return Vocabulary((), pad)
    return Vocabulary((end,), pad if pad != end else (0 if end != 0 else 1))


def _learning(stage: Stage, config: PPOConfig) -> tuple[Model, Model]:
    """Build actor and critic, without dropout."""
    quiet = config.model.model_copy(update={"dropout": 0.0, "attention_dropout": 0.0})
    valued = quiet.model_copy(update={"head": "value"})
    actor = stage.model(quiet, config.checkpoint.start)
    return actor, stage.model(valued, config.reward_model, needs_head=True)


def _frozen(stage: Stage, config: PPOConfig) -> tuple[Model, Model]:
    """Build the reference and the reward model: where actor and critic start, and stay so."""
    frozen = _learning(stage, config)
    for model in frozen:
        for parameter in model.parameters():
            parameter.requires_grad_(False)
    return frozen


def _judging(reference: Model, reward: Model, config: PPOConfig) -> FrozenModels:
    return FrozenModels(_log_probs(reference, config), _values(reward))


def _log_probs(model: Model, config: PPOConfig) -> Callable[[Batch], torch.Tensor]:
    output = LogProbs(config.rollout.temperature)
    return lambda batch: model.evaluate([batch], output)[0][0]


def _values(model: Model) -> Callable[[Batch], torch.Tensor]:
    return lambda batch: model.evaluate([batch], Values())[0]


@dataclass(frozen=True)
class _Loop:
    """A step of PPO: rollout, experience, updates."""

    config: PPOConfig
    stage: Stage
    models: Models
    learners: Sequence[Learner]
    trainer: Trainer
    vocabulary: Vocabulary
    remote: RemoteModels | None = None

    def _judges(self) -> Judges:
        models, config = self.models, self.config
        frozen = self.remote or _judging(models.reference, models.reward, config)
        return Judges(
            decode_with(models.actor),
            _log_probs(models.actor, config),
            _values(models.critic),
            frozen,
            self.stage.mesh.device,
        )

    def _roll(self, prompts: Sequence[Prompt], ids: Sequence[int], seed: int):
        with self.models.actor.gathered():
            return rollout(self._judges(), prompts, ids, self.config.rollout, seed, self.vocabulary)

    def step(self, parts: list[tuple[Sequence[Prompt], Sequence[int]]]) -> dict[str, float]:
        """One rollout and its updates."""
        started = time.perf_counter()
        config, progress, mesh = self.config, self.trainer.progress, self.stage.mesh
        self.stage.heart.enter("rollout", self.models.actor)
        prompts = [prompt for part, _ in parts for prompt in part]
        ids = [number for _, numbers in parts for number in numbers]
        coefficient = progress.extra.setdefault("kl_coefficient", config.kl.coefficient)
        responses, judged = self._roll(prompts, ids, fold(config.run.seed, progress.step))
        self.trainer.asked_elsewhere = self.remote is not None and self.remote.asked_to_stop
        experience, means = gather_experience(judged, config.reward, coefficient, mesh.dp)
        metrics = {name: float(value) for name, value in means.items()}
        metrics["rollout_s"] = time.perf_counter() - started
        metrics |= self._update(responses, experience)
        metrics["kl_coefficient"] = coefficient
        size = config.train.global_batch_size
        progress.extra["kl_coefficient"] = adapt(config.kl, coefficient, metrics["kl"], size)
        metrics["tokens"] = metrics["response_tokens"] * size
        return metrics

    def _update(self, responses: Responses, experience: Experience) -> dict[str, float]:
        config, progress = self.config, self.trainer.progress
        order = mini_batches(
            len(experience.mask), config.update, fold(config.run.seed, progress.step, 1)
        )
        metrics: list[dict[str, float]] = []
        for passes in order:
            for chosen in passes:
                items = self._items(responses, experience, chosen)
                count = int(experience.mask[chosen].sum())
                metrics.append(self._actor(items, count) | self._critic(items, count))
        return {name: sum(m[name] for m in metrics) / len(metrics) for name in metrics[0]}

    def _items(self, responses: Responses, experience: Experience, chosen: torch.Tensor):
        size = self.config.train.micro_batch_size
        return [
            (responses.batch.select(part), experience.rows(part))
            for part in chosen.to(responses.mask.device).split(size)
        ]

    def _actor(self, items: list, count: int) -> dict[str, float]:
        update, temperature = self.config.update, self.config.rollout.temperature
        more = self._pretraining() if update.pretrain_coefficient else []
        return self.learners[0].step(
            [*items, *more],
            lambda scale: Task(LogProbs(temperature), PolicyLoss(update.clip, scale)),
            count,
            self.trainer.progress.consumed_samples,
        )

    def _critic(self, items: list, count: int) -> dict[str, float]:
        clip = self.config.update.value_clip
        metrics = self.learners[1].step(
            items,
            lambda scale: Task(Values(), ValueLoss(clip, scale)),
            count,
            self.trainer.progress.consumed_samples,
        )
        return {k: v for k, v in metrics.items() if k.startswith("value")} | {
            "critic_grad_norm": metrics["grad_norm"]
        }

    def _pretraining(self) -> list[tuple[Batch, Pretraining]]:
        """Micro-batches of pretraining text beside the answers (PPO-ptx)."""
        config, mesh = self.config, self.stage.mesh
        text, seed = config.pretraining, fold(config.run.seed, 2)
        data = samples_of(text, config.tokenizer, config.model, seed)(text.train, text.weights)
        make = partial(rows, data=text, model=config.model)
        loader = Loader(data, make, share_of(config.train, mesh), seed=seed)
        batches = loader.read(self.trainer.progress.consumed_samples)
        targets = sum_count(sum(b.num_targets for b in batches), mesh.dp, mesh.device)
        scale = config.update.pretrain_coefficient / max(targets, 1.0)
        return [(batch, Pretraining(scale)) for batch in batches]

    def heldout(self, prompts: Prompts) -> dict[str, float]:
        """Mean reward and KL of answers to held-out prompts, drawn with one seed throughout."""
        mesh, train = self.stage.mesh, self.config.train
        count = min(train.evaluate_samples, len(prompts)) // mesh.dp.size * mesh.dp.size
        own = range(mesh.dp.rank, max(count, mesh.dp.size), mesh.dp.size)
        chosen = [prompts[i % len(prompts)] for i in own]
        _, judged = self._roll(chosen, list(own), fold(self.config.run.seed, 3))
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
