"""DPO, GRPO and PPO, full or by adapters, on tiny models of three families, as a job."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megalite.distributed.launch import Launch
from megalite.distributed.mesh import Mesh, ParallelConfig, build_mesh
from megalite.engine.base import Base
from megalite.engine.build import BuildOptions, build_model
from megalite.engine.guests import Guest, GuestOptions
from megalite.engine.lora import NO_LORA, LoRAConfig
from megalite.engine.model import Model
from megalite.models.config import ModelConfig
from megalite.stages.preferences.config import PreferenceLossConfig
from megalite.stages.preferences.step import PreferenceLearner
from megalite.stages.rlhf.config import GRPOConfig, PolicyConfig, PPOConfig
from megalite.stages.rlhf.models import ReferenceModels, TrainedModels
from megalite.stages.rlhf.rollout import SpecialTokens
from megalite.stages.rlhf.step import keep_apart
from megalite.stages.setup import Stage
from megalite.training.config import OptimizerConfig, ScheduleConfig, TrainConfig
from megalite.training.learner import Learner, Learning
from megalite.training.progress import Progress
from megalite.training.watchdog.heartbeat import Heartbeat
from tests.dist import models
from tests.dist.policy_jobs import Questions, Recorded
from tests.dist.preference_jobs import _steps as steps_of_preferences

METHODS = ("dpo", "grpo", "ppo")
FAMILIES = ("llama", "t5", "chatglm2-tiny")
PROMPTS = 6  # of a step: over two ranks a mini-batch of PPO's is two answers and one
LORA = LoRAConfig(rank=3, alpha=6.0)
ADVANTAGES = {"llama": "grpo", "t5": "dr_grpo", "chatglm2-tiny": "rloo"}
RATE = {"learning_rate": 1e-3}
CONSTANT = ScheduleConfig(kind="constant", warmup=0.0)


@dataclass(frozen=True)
class Case:
    """A method on a family's model, by adapters or not.

    Attributes:
        method: one of ``METHODS``.
        family: one of ``FAMILIES``.
        adapted: whether adapters alone learn; PPO's critic then has the actor's base.
    """

    method: str
    family: str
    adapted: bool

    @property
    def shape(self) -> ModelConfig:
        """Without dropout, in two blocks a stack."""
        config = models.config(self.family).without_dropout()
        sizes = {"num_layers": 2, "num_encoder_layers": min(config.num_encoder_layers, 2)}
        return config.model_copy(update=sizes)

    @property
    def lora(self) -> LoRAConfig:
        """Its adapters."""
        return LORA if self.adapted else NO_LORA

    def policy(self) -> PolicyConfig:
        """The config of GRPO or PPO."""
        values: dict[str, Any] = {
            "model": self.shape.model_dump(exclude={"preset"}),
            "train": {"steps": 9, "global_batch_size": PROMPTS, "micro_batch_size": 1},
            "kl": {"coefficient": 0.1},
            "optimizer": RATE,
            "schedule": CONSTANT,
        }
        drawn = {"max_new_tokens": 4, "micro_batch_size": 3, "slots": 4}
        if self.method == "ppo":
            update = {"mini_batches": 2, "epochs": 1}
            return PPOConfig(**values, rollout=drawn, update=update)
        values |= {
            "advantage": {"kind": ADVANTAGES[self.family]},
            "rollout": {**drawn, "answers": 2},
        }
        return GRPOConfig(**values, update={"mini_batches": 3, "epochs": 1})


def train(
    launch: Launch, layout: dict[str, Any], cases: Sequence[tuple[str, str, bool]], steps: int
) -> dict[tuple[str, str, bool], tuple]:
    """Of each case metrics of its steps, and the answers of its rollouts by their numbers."""
    parallel = ParallelConfig(**layout)
    mesh = Mesh.single() if launch.world_size == 1 else build_mesh(launch, parallel, "cpu")
    return {told: _train(Case(*told), mesh, parallel, steps) for told in cases}


def _train(case: Case, mesh: Mesh, parallel: ParallelConfig, steps: int) -> tuple:
    if case.method != "dpo":
        return _policy(case, case.policy(), mesh, parallel, steps)
    policy = build_model(case.shape, mesh, parallel, seed=1, options=BuildOptions(lora=case.lora))
    train = TrainConfig(steps=20, global_batch_size=models.SAMPLES)
    learner = Learner(policy, mesh, Learning(train, OptimizerConfig(**RATE), CONSTANT, 1))
    reference = Base(policy) if case.adapted else build_model(case.shape, mesh, parallel, seed=1)
    learns = PreferenceLearner(PreferenceLossConfig(label_smoothing=0.1), learner, reference)
    return steps_of_preferences(learns, steps), []


def _models(case: Case, mesh: Mesh, parallel: ParallelConfig) -> tuple[TrainedModels, Any]:
    """What learns, and the frozen models: a reward model of its own scores answers."""
    value = case.shape.model_copy(update={"head": "value"})
    critics = [GuestOptions("critic", value, case.lora)] if case.method == "ppo" else []

    def build(shape: ModelConfig, seed: int, lora: LoRAConfig = NO_LORA, guests=()) -> Model:
        options = BuildOptions(lora=lora, guests=guests)
        return build_model(shape, mesh, parallel, seed=seed, options=options)

    actor = build(case.shape, 1, case.lora, critics if case.adapted else ())
    reference = Base(actor) if case.adapted else build(case.shape, 2)
    critic: Model | None = None
    if critics:
        critic = Guest(actor, critics[0]) if case.adapted else build(value, 1)
    return TrainedModels(actor, critic), ReferenceModels(reference, [build(value, 3)])


def _policy(
    case: Case, config: PolicyConfig, mesh: Mesh, parallel: ParallelConfig, steps: int
) -> tuple:
    trained, frozen = _models(case, mesh, parallel)
    learning = Learning(config.train, config.optimizer, config.schedule, 1)
    learners = [Learner(trained.actor, mesh, learning, "actor")]
    if trained.critic is not None:
        learners.append(Learner(trained.critic, mesh, learning, "critic"))
    stage = Stage(config, Launch(), mesh, *[None] * 5, Heartbeat(), None)  # what a step reads of it
    judges, tokens = frozen.judges(config.rollout.temperature), SpecialTokens(range(3, 30), 0)
    step = Recorded(config, stage, trained, learners, judges, tokens)
    questions = Questions(config.model.is_encoder_decoder)
    progress, metrics = Progress(), []
    loader = stage.loader(questions, keep_apart, progress, size=1)
    for _ in range(steps):
        result = step(loader.read(progress.consumed_samples), progress)
        metrics.append(dict(result.metrics))
        progress = progress.after_step(PROMPTS, result.extra)
    return metrics, step.answers
