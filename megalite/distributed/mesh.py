"""The processes of a run as a mesh with named axes, and the config that shapes it."""

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist
from pydantic import Field
from torch.distributed.device_mesh import DeviceMesh

from megalite.config.section import Section
from megalite.distributed.launch import Launch
from megalite.distributed.rendezvous import store_of_this_start
from megalite.errors import ConfigError
from megalite.torch_private import drop_process_groups, set_timeout

_AXES = ("pp", "replicate", "shard", "tp")


class ParallelConfig(Section):
    """How a run is spread over processes: ``pp * replicate * shard * tp`` of them."""

    tp: int = Field(1, ge=1, description="tensor-parallel processes, which share each layer")
    pp: int = Field(1, ge=1, description="pipeline-parallel processes")
    shard: int = Field(
        1,
        ge=1,
        description="processes that shard parameters and optimizer state (FSDP2)",
    )
    replicate: int = Field(
        0, ge=0, description="data-parallel replicas of all of that; 0: whatever is left"
    )
    sequence_parallel: bool = Field(
        False, description="sequence split over the tp processes between matrix products"
    )
    reshard_after_forward: bool = Field(
        False,
        description="true: gathered parameters dropped after each pass, to save memory; false: "
        "kept for the whole step",
    )
    reduce_gradients: Literal["once", "each"] = Field(
        "once",
        description="micro-batches that reduce gradients: once (the step's last, all gradients "
        "wait whole in fp32) or each (a shard is kept, to save memory; without a pipeline)",
    )
    schedule: Literal["1f1b", "interleaved", "gpipe"] = Field(
        "1f1b",
        description="pipeline schedule: 1f1b, interleaved (chunks_per_rank stages per process), or "
        "gpipe (all forward passes first)",
    )
    chunks_per_rank: int = Field(
        1, ge=1, description="pipeline stages per process, for the interleaved schedule"
    )
    encoder_stages: int = Field(
        0, ge=0, description="pipeline stages of an encoder-decoder's encoder; 0: balanced by cost"
    )
    recompute: Literal["none", "selective", "full"] = Field(
        "none",
        description="activations recomputed in the backward pass: none, selective (all but matrix "
        "products and attention), or full",
    )
    recompute_blocks: int = Field(
        0, ge=0, description="blocks per stack that recompute, from the first; 0: all"
    )
    timeout_s: float = Field(
        600.0,
        gt=0,
        le=1e9,
        description="seconds after which a collective has hung; the culprit is named after 3/4",
    )

    @property
    def environment(self) -> dict[str, str]:
        """What the environment must say, before a GPU is asked for, so that collectives overlap.

        A collective that is queued beside a product has to start before it: NCCL's kernels then go
        first. Tensor parallelism alone also sends all work through one queue, which keeps the
        order in which it was queued; FSDP2's copies beside it would wait in that queue.
        """
        first = {"TORCH_NCCL_HIGH_PRIORITY": "1"}
        one_queue = {"CUDA_DEVICE_MAX_CONNECTIONS": "1"}
        return first | (one_queue if self.tp > 1 and self.shard == 1 else {})

    def misfit(self, world_size: int) -> str | None:
        """Why this layout is not one of ``world_size`` processes; None where it is."""
        fixed = self.pp * self.shard * self.tp
        if fixed * (self.replicate or max(world_size // fixed, 1)) == world_size:
            return None
        return (
            f"--parallel: pp {self.pp} x replicate {self.replicate or 'any'} x shard "
            f"{self.shard} x tp {self.tp} must be {world_size}, the number of processes"
        )

    def sizes(self, world_size: int) -> tuple[int, int, int, int]:
        """Sizes of (pp, replicate, shard, tp) for this many processes.

        Raises:
            ConfigError: they don't multiply to ``world_size``.
        """
        fault = self.misfit(world_size)
        if fault is not None:
            raise ConfigError(fault)
        replicate = self.replicate or world_size // (self.pp * self.shard * self.tp)
        return self.pp, replicate, self.shard, self.tp


def factorisations(world_size: int) -> list[tuple[int, int, int, int]]:
    """All (pp, replicate, shard, tp) whose product is ``world_size``."""
    divisors = [d for d in range(1, world_size + 1) if world_size % d == 0]
    return [
        (pp, world_size // (pp * shard * tp), shard, tp)
        for pp in divisors
        for shard in divisors
        for tp in divisors
        if world_size % (pp * shard * tp) == 0
    ]


@dataclass(frozen=True)
class Axis:
    """One axis of the mesh as this process sees it.

    Attributes:
        name: such as ``tp``.
        size: processes along it.
        rank: this process's place along it.
        group: to communicate along it; None when ``size`` is 1.
    """

    name: str
    size: int = 1
    rank: int = 0
    group: dist.ProcessGroup | None = None

    def global_rank(self, rank: int) -> int:
        """The rank in the run of the process at place ``rank`` of an axis of several."""
        assert self.group is not None
        return dist.get_global_rank(self.group, rank)


@dataclass(frozen=True)
class Mesh:
    """The processes of a run, by axis; passed to whatever communicates.

    Attributes:
        pp: pipeline stages.
        replicate: copies of the sharded parameters.
        shard: parameters and optimizer state are split over it (FSDP2).
        tp: matrices are split over it.
        dp: ``replicate`` x ``shard``; samples are divided over it.
        world: all processes.
        device: where this process computes.
        device_mesh: the same as PyTorch has it, with axes pp, replicate, shard, tp; None for a
            process alone without a process group.
        sequence_parallel: whether the sequence is split over ``tp`` between matrices.
        timeout: of every group's collectives.
    """

    pp: Axis
    replicate: Axis
    shard: Axis
    tp: Axis
    dp: Axis
    world: Axis
    device: torch.device
    device_mesh: DeviceMesh | None = None
    sequence_parallel: bool = False
    timeout: timedelta = timedelta(seconds=600)

    @classmethod
    def single(cls, device: torch.device | str = "cpu") -> "Mesh":
        """The mesh of one process, which never communicates."""
        names = ("pp", "replicate", "shard", "tp", "dp", "world")
        pp, replicate, shard, tp, dp, world = (Axis(name) for name in names)
        return cls(pp, replicate, shard, tp, dp, world, torch.device(device))

    def ranks(self) -> list[int] | None:
        """Its processes by their ranks in the run; None without a process group."""
        return None if self.device_mesh is None else self.device_mesh.mesh.flatten().tolist()


def place_axis(mesh: Mesh) -> Axis:
    """All processes that share this one's place in the pipeline: replicate x shard x tp.

    Comm: they make its group together.
    """
    if mesh.pp.size == 1:
        return mesh.world
    assert mesh.device_mesh is not None
    ranks = mesh.device_mesh.mesh[mesh.pp.rank].flatten().tolist()
    if len(ranks) == 1:
        return Axis("place")
    group = dist.new_group(
        ranks, mesh.timeout, use_local_synchronization=True, group_desc="mesh_place"
    )
    return Axis("place", len(ranks), ranks.index(dist.get_rank()), group)


def start_process_group(launch: Launch, device: torch.device, timeout_s: float) -> None:
    """Join the default process group (NCCL for GPUs, gloo else), unless already joined.

    A process alone makes a group of one: FSDP2 and its mixed precision need one.

    What is there before is frozen (``gc.freeze``) until the group is left: none of it is of the
    run, and neither the collector's rounds meanwhile nor the last one look through it.
    """
    if dist.is_initialized():
        return
    gc.freeze()
    timeout = timedelta(seconds=timeout_s)
    backend = "nccl" if device.type == "cuda" else "gloo"
    store = dist.HashStore() if launch.world_size == 1 else store_of_this_start(launch, timeout)
    dist.init_process_group(
        backend, store=store, rank=launch.rank, world_size=launch.world_size, timeout=timeout
    )


def leave_process_group() -> None:
    """Leave the default process group and all others, if joined, when nothing is under way in them.

    A thread of gloo may hold the last collective's tensors for a moment longer. A process that ends
    meanwhile takes the interpreter from under it, and is aborted: so the threads end here.
    """
    if dist.is_initialized():
        dist.destroy_process_group()
        drop_process_groups()
        gc.unfreeze()


def build_mesh(launch: Launch, config: ParallelConfig, device: torch.device | str) -> Mesh:
    """Start the process group and lay its processes out.

    Comm: every process calls this, with the same config.

    Raises:
        ConfigError: the layout doesn't fit the number of processes.
    """
    return build_meshes(launch, [(launch.world_size, config)], device)


def build_meshes(
    launch: Launch, sides: Sequence[tuple[int, ParallelConfig]], device: torch.device | str
) -> Mesh:
    """Start the process group and lay its processes out in meshes side by side.

    Args:
        launch: which process this is.
        sides: processes and layout of each mesh, in the order of ranks.
        device: where this process computes.

    Returns:
        The mesh that this process is in; its ``world`` are the mesh's processes.

    Comm: every process calls this, with the same sides.

    Raises:
        ConfigError: a layout doesn't fit its number of processes.
    """
    device, first = torch.device(device), 0
    sizes = [config.sizes(count) for count, config in sides]
    start_process_group(launch, device, sides[0][1].timeout_s)
    found = []
    for (count, config), size in zip(sides, sizes, strict=True):
        ranks = torch.arange(first, first + count)
        device_mesh = DeviceMesh(device.type, ranks.view(size), mesh_dim_names=_AXES)
        if launch.rank in ranks:
            found.append((device_mesh, config))
        first += count
    ((device_mesh, config),) = found
    return _mesh_of(device_mesh, config, launch, device)


def _mesh_of(
    device_mesh: DeviceMesh, config: ParallelConfig, launch: Launch, device: torch.device
) -> Mesh:
    """The mesh of a process in it. Comm: its processes make their groups together."""
    timeout = timedelta(seconds=config.timeout_s)
    ranks = device_mesh.mesh
    axes = {name: _axis(name, device_mesh[name]) for name in _AXES}
    own = ranks[axes["pp"].rank, :, :, axes["tp"].rank]
    for name, members in (("dp", own), ("world", ranks)):
        axes[name] = _flat_axis(name, members.flatten().tolist(), launch, timeout)
    for axis in axes.values():
        if axis.group is not None:
            set_timeout(axis.group, timeout)
    return Mesh(
        **axes,
        device=device,
        device_mesh=device_mesh,
        sequence_parallel=config.sequence_parallel and config.tp > 1,
        timeout=timeout,
    )


def _flat_axis(name: str, ranks: list[int], launch: Launch, timeout: timedelta) -> Axis:
    """An axis over these ranks of the run.

    Comm: they make its group together. PyTorch names it by the ranks and the number of groups that
    a process is in, which must be the same on all of them.
    """
    group = None
    if len(ranks) == launch.world_size > 1:
        group = dist.group.WORLD
    elif len(ranks) > 1:
        group = dist.new_group(
            ranks, timeout, use_local_synchronization=True, group_desc=f"mesh_{name}"
        )
    return Axis(name, len(ranks), ranks.index(launch.rank), group)


def _axis(name: str, mesh: DeviceMesh) -> Axis:
    group = mesh.get_group() if mesh.size() > 1 else None
    return Axis(name, mesh.size(), mesh.get_local_rank(), group)
