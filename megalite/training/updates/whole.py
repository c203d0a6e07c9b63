"""Matrices whose pieces are on several processes, each worked on whole by one of them.

Every process is given about as much of the work, whatever axes cut the matrices or copy them: each
sends its pieces to the one that works on a matrix and gets its piece of the result, all matrices at
once.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from megalite.distributed.gather import gather_objects
from megalite.distributed.mesh import Axis

Box = tuple[tuple[int, ...], tuple[int, ...]]  # shape and offset of a piece in its whole


@dataclass(frozen=True)
class _Move:
    """A piece of a matrix that a process sends to another one.

    Attributes:
        number: of the matrix.
        box: the piece.
        source: the process that has it.
        target: the process that gets it.
    """

    number: int
    box: Box
    source: int
    target: int

    @property
    def numel(self) -> int:
        return math.prod(self.box[0])


class WholeMatrices:
    """Works on matrices that are cut, each whole on one process.

    Attributes:
        owned: numbers of the matrices that this process works on.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, ...]],
        boxes: Sequence[Box],
        costs: Sequence[float],
        axis: Axis,
    ) -> None:
        """Learn who holds what, and share the work out.

        Comm: all-gather of the boxes over ``axis``.

        Args:
            shapes: of the whole matrices, the same on all processes.
            boxes: what this process holds of each.
            costs: of working on each, in any unit.
            axis: the processes that hold pieces of them or copies of pieces.
        """
        self._shapes, self._boxes, self._axis = list(shapes), list(boxes), axis
        everyone = gather_objects(self._boxes, axis)
        owners = share_out(costs, axis.size)
        self.owned = [n for n, owner in enumerate(owners) if owner == axis.rank]
        there, back = [], []
        for number, owner in enumerate(owners):
            holders: dict[Box, list[int]] = {}
            for rank, held in enumerate(everyone):
                holders.setdefault(held[number], []).append(rank)
            for box, ranks in holders.items():
                nearest = min(ranks, key=lambda rank: (abs(rank - owner), rank))
                there.append(_Move(number, box, nearest, owner))
                back += [_Move(number, box, owner, rank) for rank in ranks]
        self._there, self._back = _Exchange(there, axis), _Exchange(back, axis)

    def work(
        self, pieces: Sequence[Tensor], on_whole: Callable[[int, Tensor], Tensor]
    ) -> Iterator[Tensor]:
        """What a function of each whole matrix gives, this process's piece of it, in order.

        Comm: two all-to-alls, of about what this process holds of all matrices; none where it is
        alone.

        Args:
            pieces: of each matrix, of one dtype.
            on_whole: called with a matrix's number and all of it; gives another of its shape.
        """
        if self._axis.group is None:
            yield from (on_whole(number, piece) for number, piece in enumerate(pieces))
            return
        found = self._there.run(lambda move: pieces[move.number], pieces[0])
        wholes: dict[int, Tensor] = {}
        for move, piece in found:
            if move.number not in wholes:
                wholes[move.number] = piece.new_empty(self._shapes[move.number])
            wholes[move.number][_where(move.box)] = piece
        del found
        results = {number: on_whole(number, wholes.pop(number)) for number in self.owned}
        returned = self._back.run(lambda m: results[m.number][_where(m.box)], pieces[0])
        mine = {move.number: piece for move, piece in returned}
        yield from (mine[number] for number in range(len(pieces)))


def _where(box: Box) -> tuple[slice, ...]:
    return tuple(slice(at, at + size) for size, at in zip(*box, strict=True))


def share_out(costs: Sequence[float], num_processes: int) -> list[int]:
    """The process that each piece of work goes to: the dearest first, each to who has least."""
    loads, owners = [0.0] * num_processes, [0] * len(costs)
    for number in sorted(range(len(costs)), key=lambda n: (-costs[n], n)):
        owner = loads.index(min(loads))
        loads[owner] += costs[number]
        owners[number] = owner
    return owners


class _Exchange:
    """Moves of pieces between all processes of an axis, in one all-to-all."""

    def __init__(self, moves: Sequence[_Move], axis: Axis) -> None:
        self._axis = axis
        ranks = range(axis.size)
        self._sent = [
            m for peer in ranks for m in moves if (m.source, m.target) == (axis.rank, peer)
        ]
        self._got = [
            m for peer in ranks for m in moves if (m.source, m.target) == (peer, axis.rank)
        ]
        self._sizes = [sum(m.numel for m in self._sent if m.target == peer) for peer in ranks]
        self._coming = [sum(m.numel for m in self._got if m.source == peer) for peer in ranks]

    def run(self, piece_of: Callable[[_Move], Tensor], like: Tensor) -> list[tuple[_Move, Tensor]]:
        """Send and receive; the pieces that came, with their moves."""
        parts = [piece_of(move).reshape(-1) for move in self._sent]
        out = torch.cat(parts) if parts else like.new_empty(0)
        came = like.new_empty(sum(self._coming))
        dist.all_to_all_single(came, out, self._coming, self._sizes, group=self._axis.group)
        pieces = came.split([move.numel for move in self._got])
        return [
            (move, piece.view(move.box[0])) for move, piece in zip(self._got, pieces, strict=True)
        ]
