"""What a step's collectives cost alone: their calls are recorded, then made again bare."""

import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from megalite.distributed.collectives import all_gather_single, reduce_scatter_single


@dataclass(frozen=True)
class Call:
    """One call of a process: a collective, a send or a receive.

    Attributes:
        name: PyTorch's, such as ``allreduce_``.
        tensors: empty ones of the call's shapes, in the order of its arguments.
        group: its processes.
        peer: rank in the group of the other process, or of a broadcast's source.
    """

    name: str
    tensors: list[Tensor]
    group: dist.ProcessGroup
    peer: int


class Traffic(TorchDispatchMode):
    """Inside this context every call of torch.distributed is noted in ``calls``."""

    def __init__(self) -> None:
        """Note nothing yet."""
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run the operator; note it if it communicates."""
        if func.namespace == "c10d":
            self._note(func._schema.name.split("::")[1], args)
        return func(*args, **(kwargs or {}))

    def _note(self, name: str, args: tuple[Any, ...]) -> None:
        leaves = tree_leaves(args)
        tensors = [torch.empty_like(leaf) for leaf in leaves if isinstance(leaf, Tensor)]
        numbers = [leaf for leaf in leaves if type(leaf) is int]
        boxed = next(leaf for leaf in leaves if isinstance(leaf, torch.ScriptObject))
        group = dist.ProcessGroup.unbox(boxed)
        self.calls.append(Call(name, tensors, group, numbers[0] if numbers else 0))

    def summary(self) -> dict[str, dict[str, float]]:
        """Calls and MiB of each kind, as this process gives them."""
        kinds: dict[str, dict[str, float]] = defaultdict(lambda: {"calls": 0, "mib": 0.0})
        for call in self.calls:
            size = max((tensor.nbytes for tensor in call.tensors), default=0)
            kinds[call.name]["calls"] += 1
            kinds[call.name]["mib"] += size / 2**20
        return dict(kinds)


def _again(call: Call) -> Any:
    """Make a call again; give what to wait for, where it may wait."""
    group, tensors = call.group, call.tensors
    peer = dist.get_global_rank(group, call.peer)
    if call.name == "allreduce_":
        return dist.all_reduce(tensors[0], group=group)
    if call.name in ("_allgather_base_", "allgather_into_tensor_coalesced_"):
        return all_gather_single(tensors[0], tensors[1], group=group)
    if call.name in ("_reduce_scatter_base_", "reduce_scatter_tensor_coalesced_"):
        return reduce_scatter_single(tensors[0], tensors[1], group=group)
    if call.name == "allgather_":
        return dist.all_gather(tensors[:-1], tensors[-1], group=group)
    if call.name == "broadcast_":
        return dist.broadcast(tensors[0], src=peer, group=group)
    if call.name == "send":
        return dist.isend(tensors[0], dst=peer, group=group)
    if call.name == "recv_":
        return dist.recv(tensors[0], src=peer, group=group)
    if call.name == "barrier":
        return dist.barrier(group=group)
    raise ValueError(f"{call.name}: a call that can't be made again")


def bare_seconds(calls: list[Call], rounds: int = 3) -> float:
    """The least time in which all processes make their calls again, nothing computed between.

    Comm: every process of the run calls this.
    """
    best = float("inf")
    device = calls[0].tensors[0].device if calls else torch.device("cpu")
    for _ in range(rounds + 1):  # the first meets cold memory
        dist.barrier()
        started = time.perf_counter()
        pending = [_again(call) for call in calls]
        for work in pending:
            if work is not None and hasattr(work, "wait"):
                work.wait()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return best
