"""What each training stage holds and takes: one model that learns, with what stands beside it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from megalite.distributed.mesh import ParallelConfig
from megalite.models.config import ModelConfig
from megalite.plan.constants import Constants
from megalite.plan.devices import Cluster
from megalite.plan.job import Job
from megalite.plan.kernels import Kernels
from megalite.plan.memory import (
    CONTEXT_GIB,
    FRAGMENTS,
    GIB,
    ProcessMemory,
    Work,
    base_memory,
    data_parallel,
    estimate,
)
from megalite.plan.step import Seconds, step_seconds
from megalite.training.metrics.flops import Operations

StageName = Literal["pretrain", "sft", "rm", "ppo", "dpo"]
FORWARD = 1 / 3  # of what a step computes
PAIR = 2  # sequences of a sample that compares answers


@dataclass(frozen=True)
class Stage:
    """A stage, and what of it the plan asks for.

    Attributes:
        name: which.
        answered: share of a PPO row that the actor writes.
        passes: of PPO over a step's answers.
        slots: answers that PPO writes side by side.
        has_reference: DPO's reference is a second model, asked in every step.
        judges: models that DPO asks about held-out answers alone.
        has_reward: PPO has the reward model that its critic starts from.
        judging: shapes of PPO's further reward models.
        frozen: the layout of PPO's frozen models on processes of their own; None: they share.
        shares_base: PPO's critic has the actor's frozen weights.
    """

    name: StageName = "pretrain"
    answered: float = 0.5
    passes: int = 4
    slots: int = 32
    has_reference: bool = False
    judges: int = 0
    has_reward: bool = True
    judging: tuple[ModelConfig, ...] = ()
    frozen: ParallelConfig | None = None
    shares_base: bool = False

    def work(self, work: Work) -> Work:
        """What a step of the model that learns trains; a comparison is a pair of sequences."""
        if self.name == "rm":
            work = critic_of(work)
        if self.name not in ("rm", "dpo"):
            return work
        lengths = PAIR * work.sequence_length, PAIR * work.encoder_length
        return replace(work, sequence_length=lengths[0], encoder_length=lengths[1])

    def job(self, job: Job) -> Job:
        """The same of a job: sequences of a pair don't see each other."""
        return replace(job, work=self.work(job.work), seen=job.rows_seen)


PRETRAIN = Stage()


def critic_of(work: Work, shape: ModelConfig | None = None) -> Work:
    """The same work for a model that gives a scalar a row: a reward model, a critic.

    ``shape`` is its shape but for the head; None: the work's.
    """
    head = {"head": "value", "head_bias": False, "tie_embeddings": False}
    return replace(work, model=(shape or work.model).model_copy(update=head))


def stage_memory(stage: Stage, work: Work, parallel: ParallelConfig) -> list[ProcessMemory]:
    """The memory of a process of each pipeline rank in a stage; of PPO, of actor and critic.

    Pretraining and SFT hold the same; packed rows, prefixes and other masks change nothing of it,
    as a mask is two integers a row. Actor and critic learn in turns, and frozen models have fp32
    shards, gathered while they judge; with adapters they are those that learn, without them.

    Args:
        stage: which.
        work: what is trained; the sequence is a prompt and its answer in PPO.
        parallel: the layout of the models that learn.
    """
    learning = estimate(stage.work(work), parallel)
    if stage.name == "dpo":
        kept = stage.judges + (stage.has_reference and not work.lora.rank)
        held = [_beside(one, kept * _kept_gib(one, parallel), 0.0) for one in learning]
        return held if kept else learning
    if stage.name != "ppo":
        return learning
    critic, shared = estimate(critic_of(work), parallel), [0.0] * parallel.pp
    if stage.shares_base and work.lora.rank:
        critic, shared = _on_base(stage, critic_of(work), critic, parallel)
    cache = _cache_gib(stage, work, parallel)
    works, known = _frozen_works(stage, work), [learning, critic][: 1 + stage.has_reward]
    if stage.frozen is not None:
        works, known = [], []
    elif work.lora.rank:  # the first are actor and critic themselves, else of their sizes
        works, known = works[len(known) :], []
    ranks = zip(learning, critic, _frozen(works, parallel, known), shared, strict=True)
    return [_ppo((actor, value), frozen, cache, once) for actor, value, frozen, once in ranks]


def _on_base(
    stage: Stage, work: Work, critic: Sequence[ProcessMemory], parallel: ParallelConfig
) -> tuple[list[ProcessMemory], list[float]]:
    """A critic without the actor's weights, and GiB that it and the actor gather once.

    A reward model's adapters stay beside its own, frozen; they are taken to be as large.
    """
    found, shared = [], []
    for one, base in zip(critic, base_memory(work, parallel), strict=True):
        learned = one.parameters - base.parameters
        kept = work.width * learned * stage.has_reward / (parallel.tp * parallel.shard) / GIB
        states, count = one.states - base.states + kept, learned * (1 + stage.has_reward)
        tensors = one.tensors - one.states + states
        found.append(replace(one, states=states, parameters=count, rest=_rest(tensors)))
        shared.append(base.gathered)
    return found, shared


def frozen_memory(stage: Stage, work: Work) -> list[ProcessMemory]:
    """The memory of each pipeline rank of PPO's frozen models on processes of their own."""
    if stage.frozen is None:
        return []
    models = _frozen(_frozen_works(stage, work), stage.frozen)
    return [_judging(ranks) for ranks in models]


def _frozen_works(stage: Stage, work: Work) -> list[Work]:
    """PPO's frozen models: the reference, the reward model, further ones."""
    work = replace(work, lora=work.lora.base_alone())
    own = [work, critic_of(work)][: 1 + stage.has_reward]
    return own + [critic_of(work, shape) for shape in stage.judging]


def _frozen(
    works: Sequence[Work],
    layout: ParallelConfig,
    known: Sequence[Sequence[ProcessMemory]] = (),
) -> list[list[ProcessMemory]]:
    """Frozen models on each pipeline rank; their states are what is kept of them.

    ``known`` are estimates of the first ones.
    """
    found: list[list[ProcessMemory]] = [[] for _ in range(layout.pp)]
    estimates = [*known, *(estimate(work, layout) for work in works[len(known) :])]
    for work, ranks in zip(works, estimates, strict=True):
        is_held = work.lora.form is not None  # held ones have no fp32 parameters
        for rank, one in zip(found, ranks, strict=True):
            kept = one.states if is_held else _kept_gib(one, layout)
            rank.append(replace(one, states=kept))
    return found


def _judging(models: Sequence[ProcessMemory]) -> ProcessMemory:
    """Models that only judge: what is kept of them, what is gathered, and a block at work."""
    states = sum(one.states for one in models)
    working = max(one.working for one in models)
    gathered = sum(one.gathered for one in models)
    return replace(
        models[0],
        parameters=sum(one.parameters for one in models),
        states=states,
        gradients=0.0,
        gathered=gathered,
        activations=0.0,
        working=working,
        rest=_rest(states + gathered + working),
    )


def _rest(tensors: float) -> float:
    return CONTEXT_GIB + FRAGMENTS * tensors


def _kept_gib(one: ProcessMemory, parallel: ParallelConfig) -> float:
    """Of a model that doesn't learn: its fp32 parameters."""
    return 4.0 * one.parameters / (parallel.tp * parallel.shard) / GIB


def _beside(one: ProcessMemory, states: float, growing: float) -> ProcessMemory:
    """A learning model with states of others, and what is there at most beyond its own."""
    return replace(
        one,
        states=one.states + states,
        working=one.working + growing,
        rest=_rest(one.tensors + states + growing),
    )


def _ppo(
    learning: tuple[ProcessMemory, ProcessMemory],
    frozen: Sequence[ProcessMemory],
    cache: float,
    shared: float,
) -> ProcessMemory:
    """Actor and critic on one process, where it is fullest: as one learns, writes, or all judge.

    ``frozen`` are the models beside them, with what is kept of each as its states; ``shared`` is
    what actor and critic gather once.
    """
    actor, critic = learning
    own = [one.tensors - one.states for one in learning]
    fuller, other = (actor, critic) if own[0] >= own[1] else (critic, actor)
    writing = actor.gathered + cache
    others = max(critic.gathered - shared, sum(one.gathered for one in frozen))
    judging = actor.gathered + others
    growing = max(writing - max(own), judging - max(own), 0.0)
    states = other.states + sum(one.states for one in frozen)
    parameters = sum(one.parameters for one in [*learning, *frozen])
    return replace(_beside(fuller, states, growing), parameters=parameters)


def _answers(stage: Stage, work: Work, parallel: ParallelConfig) -> float:
    """Answers that a data-parallel rank writes in a step."""
    return max(work.train.global_batch_size / data_parallel(parallel), 1.0)


def _cache_gib(stage: Stage, work: Work, parallel: ParallelConfig) -> float:
    """Keys and values of the answers that a rank writes side by side."""
    model = work.model
    rows = min(_answers(stage, work, parallel), stage.slots) * work.sequence_length
    layers = -(-model.num_layers // parallel.pp)
    return 2.0 * work.width * rows * layers * model.kv_heads * model.head_dim / parallel.tp / GIB


def stage_seconds(stage: Stage, job: Job, cluster: Cluster, constants: Constants) -> Seconds:
    """A step of a stage.

    In PPO a step is a rollout's answers: written ``slots`` at a time, judged by all models, and
    learned in ``passes``. Writing a token of each reads the actor's parameters, and keys and values
    of half a row. No published row has checked it.
    """
    learned = step_seconds(stage.job(job), cluster, constants)
    if stage.name == "dpo" and stage.has_reference:
        return learned + Seconds(compute=_forward(learned))
    if stage.name != "ppo":
        return learned
    critic = step_seconds(replace(job, work=critic_of(job.work)), cluster, constants)
    judged = _forward(learned) + _forward(critic)
    frozen = _judged(stage, (learned, critic), job, cluster, constants)
    judged = judged + frozen if stage.frozen is None else max(judged, frozen)
    written = _written(stage, job, cluster, constants)
    return (learned + critic).times(stage.passes) + Seconds(compute=judged + written)


def _forward(step: Seconds) -> float:
    """Of a forward pass over a step's rows."""
    return FORWARD * (step.compute + step.tp + step.host)


def _judged(
    stage: Stage,
    learned: Sequence[Seconds],
    job: Job,
    cluster: Cluster,
    constants: Constants,
) -> float:
    """Of the frozen models' passes; on processes of their own they judge while the others do."""
    layout, count = stage.frozen or job.parallel, 1 + stage.has_reward

    def of(work: Work) -> Seconds:
        return step_seconds(replace(job, work=work, parallel=layout), cluster, constants)

    own = learned[:count]
    if stage.frozen is not None:
        own = [of(work) for work in (job.work, critic_of(job.work))[:count]]
    more = [of(critic_of(job.work, shape)) for shape in stage.judging]
    return sum(_forward(seconds) for seconds in (*own, *more))


def _written(stage: Stage, job: Job, cluster: Cluster, constants: Constants) -> float:
    """Of writing all answers of a step."""
    work, parallel = job.work, job.parallel
    kernels = Kernels(cluster.device, constants, work.width == 2)
    parameters = sum(one.parameters for one in estimate(work, parallel))
    read = work.width * parameters / parallel.tp  # by the pipeline's processes in turns
    read += _cache_gib(stage, work, parallel) * GIB * parallel.pp / 2
    turns = max(_answers(stage, work, parallel) / stage.slots, 1.0)
    return turns * stage.answered * work.sequence_length * kernels.moved(read)


def stage_operations(stage: Stage, job: Job) -> Operations:
    """Floating-point operations of a step of a stage, whose forward passes alone count too."""
    one = stage.job(job).operations
    if stage.name == "dpo" and stage.has_reference:
        return _more(one, FORWARD * one.model)
    if stage.name != "ppo":
        return one
    critic = replace(job, work=critic_of(job.work)).operations
    learned = Operations(
        stage.passes * (one.model + critic.model), stage.passes * (one.hardware + critic.hardware)
    )
    others = (critic_of(job.work, shape) for shape in stage.judging)
    frozen = one.model + (critic.model if stage.has_reward else 0.0)
    frozen += sum(replace(job, work=work).operations.model for work in others)
    judged = FORWARD * (one.model + critic.model + frozen)
    return _more(learned, judged + FORWARD * stage.answered * one.model)


def _more(one: Operations, forward: float) -> Operations:
    return Operations(one.model + forward, one.hardware + forward)
