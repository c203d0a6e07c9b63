"""Attention on the device against fp64: masks, head sizes, number formats, views, odd sizes."""

import itertools
import zlib
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu.exactness import Judge, Work, plain_attention
from benchmarks.gpu.here import Here, one_line
from megalite import ops
from megalite.ops import AttentionOptions, RowIntervals, attention
from megalite.ops import mask as masks

SAMPLE, SEED = 5, 11  # of dropout
HEAD_SIZES: tuple[int, ...] = (128, 64, 32, 96, 192, 256, 80, 8)
GROUPS = ((4, 4), (4, 2), (4, 1))  # query and key heads


@dataclass(frozen=True)
class Case:
    """An attention that is checked.

    Attributes:
        mask: of rows; B, Sq and Sk are its.
        heads: query heads, and key heads.
        head_dim: H.
        dtype: of q, k and v.
        has_bias: by distance, with a gradient.
        dropout_p: of probabilities.
        is_view: whether q, k and v are slices of one tensor, as of a fused projection.
    """

    mask: RowIntervals
    heads: tuple[int, int]
    head_dim: int
    dtype: torch.dtype
    has_bias: bool = False
    dropout_p: float = 0.0
    is_view: bool = False

    def inputs(self, name: str, device: str) -> tuple[list[Tensor], Tensor]:
        """q, k, v and perhaps a bias, and the upstream gradient; a function of the name."""
        generator = torch.Generator(device=device).manual_seed(zlib.crc32(name.encode()))

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, device=device, generator=generator)

        (batch, queries), keys = self.mask.start.shape, self.mask.num_keys
        (heads, groups), size = self.heads, self.head_dim
        if self.is_view:
            fused = normal(batch, queries, heads + 2 * groups, size).to(self.dtype)
            parts = list(fused.split([heads, groups, groups], 2))
        else:
            shapes = (queries, heads), (keys, groups), (keys, groups)
            parts = [normal(batch, rows, count, size).to(self.dtype) for rows, count in shapes]
        if self.has_bias:
            parts.append(normal(heads, queries + keys - 1))
        return parts, normal(batch, queries, heads, size).to(self.dtype)


def judge(here: Here, judged: Judge, name: str, case: Case, repeats: int = 2) -> None:
    """Hold one case against fp64."""
    mask = case.mask.to(here.device)
    samples = torch.arange(mask.start.shape[0], device=here.device) + SAMPLE
    options = AttentionOptions(dropout_p=case.dropout_p, dropout_seed=SEED, sample_ids=samples)

    def attend(way: Work, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        fresh = RowIntervals(mask.start, mask.end, mask.num_keys)
        return way(q, k, v, fresh, bias, options)

    sides = partial(attend, attention), partial(attend, plain_attention), partial(attend, attention)
    inputs, upstream = case.inputs(name, here.device)
    judged.judge(name, sides, inputs, upstream, repeats)


def structures(batch: int, length: int) -> dict[str, RowIntervals]:
    """A mask of each kind, with borders at odd places."""
    documents = [length // 3, length // 5, length // 7]
    documents.append(length - sum(documents) - 3)
    return {
        "causal": masks.causal(batch, length),
        "packed": masks.packed([documents] * batch, length),
        "full": masks.full(batch, length, length),
        "prefix": masks.prefix(torch.full((batch,), length // 3), length),
        "window": masks.window(batch, length, length // 4 + 1),
        "padding": masks.padding(torch.tensor([length, 3] + [0] * (batch - 2)), length),
        "cached": masks.causal(batch, 5, length),
        "one query": masks.full(batch, 1, length),
        "cross": masks.cross(torch.tensor([11] + [0] * (batch - 1)), length // 2, length - 13),
    }


def _cases(here: Here, length: int) -> list[tuple[str, Case]]:
    """All of them, the most telling first."""
    found = []
    sizes, kinds = HEAD_SIZES, here.dtypes()
    if here.is_tiny:
        sizes, kinds = (64, 128), kinds[:1]
    every = structures(2, length)
    for size, dtype, (kind, mask) in itertools.product(sizes, kinds, every.items()):
        heads = GROUPS[zlib.crc32(kind.encode()) % len(GROUPS)]
        name = f"{kind}, H {size}, {heads[0]}/{heads[1]} heads, {str(dtype)[6:]}"
        found.append((name, Case(mask, heads, size, dtype)))
    causal = every["causal"]
    extras = [(True, 0.0), (False, 0.1), (True, 0.1)]
    for size, (has_bias, p) in itertools.product(sizes[:6], extras):
        name = f"causal, H {size}, {'bias, ' if has_bias else ''}dropout {p:g}"
        found.append((name, Case(causal, (4, 4), size, kinds[0], has_bias, p)))
    view = Case(causal, (4, 2), 64, kinds[0], is_view=True)
    return [("views of one tensor", view), *found]


def run(here: Here) -> None:
    """Every case that there is time for."""
    judged, every = Judge(here), _cases(here, 41 if here.is_tiny else 1021)
    for name, case in every:
        if here.left() < 2 and judged.cases:
            here.leave_out(name, "no time left, nor for those after it")
            break
        judge(here, judged, name, case)
    judged.sum_up(f"{len(every)} attention cases, forward and gradients")


def run_apart(here: Here) -> None:
    """What may leave the device unusable: tensors that begin off a 16-byte boundary."""
    mask, shape = masks.causal(1, 40).to(here.device), (1, 40, 2, 64)
    flat = torch.randn(40 * 2 * 64 + 8, device=here.device).to(here.dtypes()[0])
    x = flat[1 : 1 + 40 * 2 * 64].view(shape)
    with ops.backend(here.backend):
        try:
            shifted, aligned = (
                attention(x, x, x, mask),
                attention(x.clone(), x.clone(), x.clone(), mask),
            )
            here.wait()
        except RuntimeError as error:
            here.note("begins 2 bytes past a boundary", one_line(error))
            return
    here.note("begins 2 bytes past a boundary", "" if torch.equal(shifted, aligned) else "differs")
