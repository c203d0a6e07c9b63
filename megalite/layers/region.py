"""Into and out of the region that is split over tensor-parallel processes.

Between such regions, under sequence parallelism, each process holds its share of the rows.

Source: Shoeybi et al. 2019, arXiv:1909.08053, section 3; Korthikanti et al. 2022, arXiv:2205.05198.
"""

import torch
from torch import Tensor

from megalite.distributed.collectives import (
    copy_to,
    gather_sequence,
    reduce_from,
    scatter_sum_sequence,
)
from megalite.distributed.mesh import Mesh


def enter(x: Tensor, mesh: Mesh, length: int) -> Tensor:
    """Give every tp process all rows, before matrices that are split by columns.

    Args:
        x: [B, S, D], or [B, S/tp, D] under sequence parallelism.
        mesh: the mesh.
        length: S.

    Returns:
        [B, S, D]. Identity forward, all-reduce backward; under sequence parallelism all-gather
        forward, reduce-scatter backward.
    """
    if mesh.sequence_parallel:
        return gather_sequence(x, mesh.tp, length)
    return copy_to(x, mesh.tp)


def leave(x: Tensor, mesh: Mesh) -> Tensor:
    """Sum partial results [B, S, D]{tp}: the twin of :func:`enter`.

    All-reduce forward, identity backward; under sequence parallelism reduce-scatter forward to
    [B, S/tp, D], all-gather backward.
    """
    if mesh.sequence_parallel:
        return scatter_sum_sequence(x, mesh.tp)
    return reduce_from(x, mesh.tp)


def own_rows(x: Tensor, mesh: Mesh) -> Tensor:
    """This process's rows of [B, S, ...] between matrices, padded with 0; no autograd."""
    if not mesh.sequence_parallel:
        return x
    each = -(-x.shape[1] // mesh.tp.size)
    part = x[:, mesh.tp.rank * each : (mesh.tp.rank + 1) * each]
    missing = each - part.shape[1]
    if missing:
        part = torch.cat((part, part.new_zeros(x.shape[0], missing, *x.shape[2:])), 1)
    return part
