"""What each training stage holds and takes: one model that learns, or PPO's four."""

from dataclasses import replace
from typing import Literal

from megalite.distributed.mesh import ParallelConfig
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
    data_parallel,
    estimate,
)
from megalite.plan.step import Seconds, step_seconds

StageName = Literal["pretrain", "sft", "rm", "ppo"]
FORWARD = 1 / 3  # of what a step computes
ANSWERED = 0.5  # of a row of prompt and answer


def critic_of(work: Work) -> Work:
    """The same work for a model that gives a scalar a row: a reward model, a critic."""
    head = {"head": "value", "head_bias": False, "tie_embeddings": False}
    return replace(work, model=work.model.model_copy(update=head))


def stage_memory(stage: StageName, work: Work, parallel: ParallelConfig) -> list[ProcessMemory]:
    """The memory of a process of each pipeline rank in a stage.

    Pretraining and SFT hold the same; packed rows, prefixes and other masks change nothing of it,
    as a mask is two integers a row. PPO's four models share the processes: actor and critic learn
    in turns, and the two that stay have their fp32 shards.

    Args:
        stage: which.
        work: what is trained; the sequence is a prompt and its answer in PPO.
        parallel: the layout of all models.
    """
    if stage == "rm":
        return estimate(critic_of(work), parallel)
    actor = estimate(work, parallel)
    if stage != "ppo":
        return actor
    critic = estimate(critic_of(work), parallel)
    cache, shards = _cache_gib(work, parallel), parallel.tp * parallel.shard
    return [_four(a, c, cache, shards) for a, c in zip(actor, critic, strict=True)]


def _four(actor: ProcessMemory, critic: ProcessMemory, cache: float, shards: int) -> ProcessMemory:
    """PPO's models on one process; the fuller of the learning ones is at work, or answers grow.

    Of the two that stay there are fp32 parameters.
    """
    learning = [one.tensors - one.states for one in (actor, critic)]
    fuller = actor if learning[0] >= learning[1] else critic
    frozen = 4.0 * (actor.parameters + critic.parameters) / shards / GIB
    states = actor.states + critic.states + frozen
    growing = max(actor.gathered + cache - max(learning), 0.0)
    working = fuller.working + growing
    tensors = states + max(learning) + growing
    return replace(
        fuller,
        parameters=2 * (actor.parameters + critic.parameters),
        states=states,
        working=working,
        rest=CONTEXT_GIB + FRAGMENTS * tensors,
    )


def _cache_gib(work: Work, parallel: ParallelConfig) -> float:
    """Keys and values of a rank's answers of a step, which it writes all at once."""
    model = work.model
    rows = work.train.global_batch_size / data_parallel(parallel) * work.sequence_length
    layers = -(-model.num_layers // parallel.pp)
    return 2.0 * work.width * rows * layers * model.kv_heads * model.head_dim / parallel.tp / GIB


def stage_seconds(stage: StageName, job: Job, cluster: Cluster, constants: Constants) -> Seconds:
    """A step of a stage.

    In PPO a step is a rollout's answers: all written at once, judged by four models, learned once.
    Writing a token of each reads the actor's parameters, and keys and values of half a row. No
    published row has checked it.
    """
    work = job.work
    if stage == "rm":
        return step_seconds(replace(job, work=critic_of(work)), cluster, constants)
    actor = step_seconds(job, cluster, constants)
    if stage != "ppo":
        return actor
    critic = step_seconds(replace(job, work=critic_of(work)), cluster, constants)
    learned = actor + critic
    judged = Seconds(compute=2 * FORWARD * (learned.compute + learned.tp))
    kernels = Kernels(cluster.device, constants, work.width == 2)
    parameters = sum(stage.parameters for stage in estimate(work, job.parallel))
    read = work.width * parameters / job.parallel.tp  # by the pipeline's processes in turns
    read += _cache_gib(work, job.parallel) * GIB * job.parallel.pp / 2
    written = ANSWERED * work.sequence_length * kernels.moved(read)
    return learned + judged + Seconds(compute=written)
