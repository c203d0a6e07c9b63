"""What operators cost a GPU, by count: launches, bytes and operations, of code that runs on meta.

Bytes are what an operator must read and write of memory: its tensors once each, where it is a
kernel of its own. Views launch nothing.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks.schedule import Shape
from megalite.ops import RowIntervals

NO_KERNEL = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh"}
NO_KERNEL |= {"_unsafe_view", "detach", "alias", "lift"}
OVERWRITES = {"copy_", "fill_", "zero_"}  # what they write to is not read
ROWS = {"embedding", "index", "index_select", "gather"}  # of the first tensor as much as is written

MaskOf = Callable[[Tensor], RowIntervals]  # the mask that begins rows at these keys


@dataclass(frozen=True)
class Entry:
    """One launch.

    Attributes:
        name: of the operator.
        bytes_: read and written.
        flops: of products and attention; 0 of everything else.
        backward: of attention's backward pass, its shape and mask.
    """

    name: str
    bytes_: float
    flops: float
    backward: tuple[Shape, RowIntervals] | None = None


class Ledger(TorchDispatchMode):
    """Inside this context every launch is noted in ``entries``."""

    def __init__(self, mask_of: MaskOf) -> None:
        """Note nothing yet.

        Args:
            mask_of: the mask of an attention call, of its ``start``.
        """
        super().__init__()
        self._mask_of = mask_of
        self.entries: list[Entry] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run the operator and note it."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func._schema.name.split("::")[1]
        moved = _moved(func, args, kwargs, out)
        if name not in NO_KERNEL and moved:
            flops, backward = self._flops(func, args, kwargs, out), self._backward(func, args)
            self.entries.append(Entry(name, moved, flops, backward))
        return out

    def _backward(self, func: Any, args: tuple) -> tuple[Shape, RowIntervals] | None:
        if not func._schema.name.startswith("megalite::attention_backward"):
            return None
        (batch, queries, heads, head_dim), (keys, groups) = args[1].shape, args[2].shape[1:3]
        padded = max(head_dim, 8)  # the kernels' least
        return Shape("", batch, heads, groups, queries, padded, keys), self._mask_of(args[6])

    def _flops(self, func: Any, args: tuple, kwargs: dict, out: Any) -> float:
        name = func._schema.name
        if name.startswith("megalite::") and "attention" in name:
            is_backward = name.endswith("_backward")
            q, start = (args[1], args[6]) if is_backward else (args[0], args[3])
            mask = self._mask_of(start)
            pairs = float((mask.end - mask.start).sum()) * q.shape[2]
            return (10.0 if is_backward else 4.0) * pairs * q.shape[3]
        space, _, plain = name.removesuffix("_").partition("::")  # addmm_ costs what addmm does
        formula = flop_registry.get(getattr(getattr(torch.ops, space), plain, None))
        args = tuple(
            x for x in args if not isinstance(x, torch.dtype)
        )  # a product's, of its result
        return 0.0 if formula is None else float(formula(*args, **kwargs, out_val=out))


def _moved(func: Any, args: tuple, kwargs: dict, out: Any) -> float:
    """Bytes that an operator reads and writes; 0 of views."""
    name = func._schema.name.split("::")[1]
    results = list(out) if len(func._schema.returns) > 1 else [out]
    whats = func._schema.returns
    made = [value for value, what in zip(results, whats, strict=False) if what.alias_info is None]
    written = sum(map(_bytes, tree_leaves(made)))
    changed, reads = 0.0, []
    for argument, value in _arguments(func, args, kwargs):
        size = sum(map(_bytes, tree_leaves(value)))
        is_changed = argument.alias_info is not None and argument.alias_info.is_write
        changed += size if is_changed else 0.0
        is_read = not (is_changed and (argument.name == "out" or name in OVERWRITES))
        reads.append(size if is_read else 0.0)
    if name in ROWS:
        reads[0] = written
    if name == "index_put_":
        values = sum(map(_bytes, tree_leaves(args[2])))
        return sum(reads[1:]) + values
    is_view = not written and not changed
    return 0.0 if is_view else written + changed + sum(reads)


def _arguments(func: Any, args: tuple, kwargs: dict) -> Iterator[tuple[Any, Any]]:
    for place, argument in enumerate(func._schema.arguments):
        if place < len(args):
            yield argument, args[place]
        elif argument.name in kwargs:
            yield argument, kwargs[argument.name]


def _bytes(value: Any) -> float:
    """Of a tensor's memory that it shows: what is expanded is there once."""
    if not isinstance(value, Tensor):
        return 0.0
    shown = 1
    for size, stride in zip(value.shape, value.stride(), strict=True):
        shown *= size if stride or size == 0 else 1
    return float(shown * value.element_size())
