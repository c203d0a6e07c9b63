"""Jobs of processes that save on disks of their nodes' own; two processes make a node."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megalite.distributed.launch import Launch
from megalite.errors import ConfigError
from megalite.training.checkpoint.local import exchange
from megalite.training.checkpoint.local.checkpoints import LocalCheckpoints, Place
from megalite.training.checkpoint.manager import Saving

Damage = Callable[[Path], None]


def opened(launch: Launch, folder: str, said: list[str], shared: bool = False) -> LocalCheckpoints:
    """The local checkpoints of a process whose node has a disk of its own."""
    node = launch.rank // 2
    disk = Path(folder) / ("disk" if shared else f"disk-{node}")
    place = Place(node, launch.rank % 2 == 0)
    return LocalCheckpoints(disk, "run-1", place, Saving(), said.append)


def state(step: int, rank: int, rows: int = 3) -> dict[str, Tensor]:
    """Tensors that only this step and process have; one has no element."""
    generator = torch.Generator().manual_seed(100 * step + rank)
    made = {"a": torch.randn(rows, 500 + rank, generator=generator), "none": torch.empty(0, 4)}
    return made | {"count": torch.tensor(step), "half": made["a"].bfloat16()}


def facts(step: int) -> dict[str, Any]:
    return {"step": step, "consumed_samples": 4 * step}


def damage(folder: Path, what: str) -> None:
    """What becomes of a node's disk between two starts."""
    if what == "lost":
        shutil.rmtree(folder)
        return
    name, how = what.split()
    (path,) = folder.glob(f"run-1/step-*/{name}")
    if how == "flipped":
        content = bytearray(path.read_bytes())
        content[-3] ^= 1
        path.write_bytes(content)
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()


def save_and_find(
    launch: Launch,
    folder: str,
    damages: dict[int, list[str]],
    later_than: int = -1,
    rows: int = 3,
    refused: str = "",
) -> tuple[int, bool, list[str], list[str]]:
    """Two saves, what happens to the disks of nodes, and what a start finds.

    Returns:
        The step that it goes on from, -1 for none; whether this process has its state, bit for bit;
        what was said; the steps that are on the node's disk after the saves.
    """
    said: list[str] = []
    exchange.CHUNK_BYTES = 3_007
    local = opened(launch, folder, said)
    for step in (4, 8):
        local.save(step, state(step, launch.rank), facts(step))
        local.wait()
    dist.barrier()
    there = sorted(str(path.relative_to(local.folder)) for path in local.folder.glob("step-*/*"))
    dist.barrier()
    if launch.rank % 2 == 0:
        for what in damages.get(launch.rank // 2, ()):
            damage(local.folder.parent, what)
    dist.barrier()
    again = opened(launch, folder, said)
    tensors = {name: torch.zeros_like(x) for name, x in state(8, launch.rank, rows).items()}
    found = again.newest(later_than, tensors, lambda _facts: refused)
    if found is None:
        return -1, False, said, there
    again.load(tensors)
    wanted = state(found[1]["step"], launch.rank, rows)
    is_same = all(torch.equal(tensors[name], wanted[name]) for name in wanted)
    again.save(9, tensors, facts(9))
    again.wait()
    again.clear()
    return found[1]["step"], is_same and found[1] == facts(found[1]["step"]), said, there


def on_one_disk(launch: Launch, folder: str) -> str:
    """What two nodes say whose disk is one."""
    try:
        opened(launch, folder, [], shared=True)
    except ConfigError as error:
        return str(error)
    return ""


def fail_on_one(launch: Launch, folder: str, rank: int) -> tuple[list[str], int]:
    """A save that one process can't write; what is said, and the step that is found then."""
    said: list[str] = []
    local = opened(launch, folder, said)
    local.save(4, state(4, launch.rank), facts(4))
    local.wait()
    dist.barrier()
    if launch.rank == rank:  # a folder is where its part or its copy of another's has to go
        (local.folder / "step-00000008" / f"rank-{rank:05}.safetensors").mkdir(parents=True)
    dist.barrier()
    local.save(8, state(8, launch.rank), facts(8))
    local.wait()
    found = local.newest(-1, state(4, launch.rank), lambda _facts: "")
    local.clear()
    return said, -1 if found is None else found[1]["step"]
