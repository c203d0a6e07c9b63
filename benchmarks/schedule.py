"""How attention's backward kernel fills a GPU, block by block, beside FlashAttention-2's grid.

    python -m benchmarks.schedule [--mask causal|full|packed]

A simulation on paper: blocks start in the order of the grid, each as soon as an SM has room, and
run as many steps as there are tiles of query rows for them; SM use is the steps of all blocks over
the slots' time until the last one ends. Tiles, parts, slots and order are those that the kernel's
host code gives (csrc/cuda/attention/sm80/backward_work.cuh), the tiles that touch each other those
of the mask's plan. FlashAttention-2 runs a block for each (tile of 128 keys, query head, sequence),
tiles fastest, one block an SM. A V100's two kernels have another grid: no tile of keys is divided.

A part of a tile of keys ends with its sums: it waits for the part before it in its slot and adds
its dk and dv to it. At H 128 a step takes 5120 clocks of an A100's tensor cores (10 * 64 * 128^2
flops). The first part of a slot stores 64 KiB more than it would write as gradients, the others
load 128 KiB too, at 64 bytes a clock and about 1000 clocks of latency: 0.2 and 0.8 steps, half as
much where two blocks share an SM, whose steps take as long for half the bytes.
"""

import argparse
import heapq
import importlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from megalite.ops import RowIntervals
from megalite.ops import mask as masks
from megalite.ops.mask_plan import TILE

HEAD_NUMBER = 37  # pairs (head, tile of rows) are numbered 37 head + tile
SMS = {"A100": 108, "H100": 132}
STORE_STEPS, ADD_STEPS = 0.2, 0.8
PEER_KEYS, ROWS = 128, 64
V100_SMS, V100_TOGETHER = 80, 4
MIB = 2**20


@dataclass(frozen=True)
class Shape:
    """A call: B, N, G, S, H, and K where it isn't S."""

    name: str
    batch: int
    heads: int
    groups: int
    length: int
    head_dim: int
    keys: int | None = None


SHAPES = (
    Shape("LLaMA-7B 1 x 2k", 1, 32, 32, 2048, 128),
    Shape("LLaMA-7B 2 x 2k", 2, 32, 32, 2048, 128),
    Shape("LLaMA-7B 4 x 2k", 4, 32, 32, 2048, 128),
    Shape("LLaMA-7B 8 x 2k", 8, 32, 32, 2048, 128),
    Shape("LLaMA-7B 9 x 2k", 9, 32, 32, 2048, 128),
    Shape("LLaMA-7B 10 x 2k", 10, 32, 32, 2048, 128),
    Shape("LLaMA-7B 1 x 8k", 1, 32, 32, 8192, 128),
    Shape("LLaMA-7B 1 x 32k", 1, 32, 32, 32768, 128),
    Shape("LLaMA-3-8B 1 x 8k", 1, 32, 8, 8192, 128),
    Shape("LLaMA-3-8B 2 x 8k", 2, 32, 8, 8192, 128),
    Shape("LLaMA-70B 1 x 8k", 1, 64, 8, 8192, 128),
    Shape("LLaMA-65B tp 8, 1 x 2k", 1, 8, 8, 2048, 128),
    Shape("LLaMA-65B tp 8, 2 x 2k", 2, 8, 8, 2048, 128),
    Shape("Falcon-7B 1 x 2k", 1, 71, 1, 2048, 64),
    Shape("Falcon-7B 4 x 2k", 4, 71, 1, 2048, 64),
    Shape("Falcon-40B tp 8, 1 x 2k", 1, 16, 1, 2048, 64),
    Shape("ChatGLM2-6B 1 x 8k", 1, 32, 2, 8192, 128),
    Shape("ChatGLM2-6B 4 x 2k", 4, 32, 2, 2048, 128),
    Shape("PaLM-8B 1 x 2k", 1, 16, 1, 2048, 256),
    Shape("GPT 1.3B 8 x 1k", 8, 16, 16, 1024, 128),
    Shape("GPT 125M 16 x 1k", 16, 12, 12, 1024, 64),
    Shape("GPT 125M 32 x 1k", 32, 12, 12, 1024, 64),
    Shape("8 heads of 64, 2 x 1k", 2, 8, 8, 1024, 64),
)


@dataclass(frozen=True)
class Schedule:
    """What the kernel's host code gives; see megalite._simt.attention_backward_schedule."""

    rows: int
    keys: int
    blocks_per_sm: int
    together: int
    parts: int
    fine_tiles: int
    levels: int
    slots: int
    partial_bytes: int
    scratch_bytes: int

    @classmethod
    def of(cls, shape: Shape) -> "Schedule":
        """For sm_80 and later with large blocks."""
        emulator = importlib.import_module("megalite._simt")
        emulator.set_architecture(80)
        keys = shape.length if shape.keys is None else shape.keys
        size = shape.batch, shape.length, keys, shape.heads, shape.groups, shape.head_dim
        return cls(**emulator.attention_backward_schedule(*size))

    def residue(self, part: int, levels: int) -> tuple[int, int]:
        """Of a part's pairs (head, tile of rows): the residue of their numbers, and its modulus."""
        level, of_level = divmod(part, self.parts)
        first = self.parts << level if level < levels else 0
        return of_level + first, self.parts << min(level + 1, levels)


@dataclass(frozen=True)
class Block:
    """A block of the kernel: steps, then its sums in the slot, after earlier blocks of the slot."""

    steps: int
    slot: tuple[int, ...] = ()
    sum_steps: float = 0.0


def touching(mask: RowIntervals, rows: int, keys: int) -> Tensor:
    """Which tiles of rows and keys the kernel visits: [sequences, tiles of keys, tiles of rows]."""
    entries = mask.plan[0]  # [B, entries, 4]: min start, max end, ...
    tiles = -(-entries.shape[1] * TILE // rows)
    padded = torch.tensor([mask.num_keys, 0]).repeat(entries.shape[0], tiles * (rows // TILE), 1)
    padded[:, : entries.shape[1]] = entries[..., :2]
    of_tiles = padded.unflatten(1, (tiles, -1))
    start, end = of_tiles[..., 0].amin(2)[:, None], of_tiles[..., 1].amax(2)[:, None]
    first = torch.arange(0, mask.num_keys, keys)[None, :, None]
    return (start < first + keys) & (first < end)


def _steps_by_number(row_tiles: Tensor, heads: int, modulus: int) -> list[int]:
    """Of the pairs (head, tile of rows) that touch a tile of keys, how many have each residue."""
    numbers = HEAD_NUMBER * torch.arange(heads)[:, None] + row_tiles.nonzero()[None, :, 0]
    return torch.bincount((numbers % modulus).flatten(), minlength=modulus).tolist()


def _items(s: Schedule, key_tiles: int) -> list[tuple[int, int]]:
    """The items of a key head, in order: tile of keys, part."""
    first_fine = key_tiles - s.fine_tiles
    items = [(tile, part) for tile in range(key_tiles) for part in range(s.parts)]
    for level in range(1, s.levels + 1):
        parts = range(level * s.parts, (level + 1) * s.parts)
        items += [(tile, part) for tile in range(first_fine, key_tiles) for part in parts]
    return items


def our_blocks(shape: Shape, mask: RowIntervals) -> Iterator[Block]:
    """In the grid's order: items that are together, sequences, key heads.

    ``mask`` is of all sequences, or of one that all are like.
    """
    s = Schedule.of(shape)
    touched = touching(mask, s.rows, s.keys)
    ratio, key_tiles = shape.heads // shape.groups, touched.shape[1]
    finest = s.parts << s.levels
    steps = [[_steps_by_number(tile, ratio, finest) for tile in tiles] for tiles in touched]
    store, add = STORE_STEPS / s.blocks_per_sm, ADD_STEPS / s.blocks_per_sm
    items, together = _items(s, key_tiles), s.together * s.parts
    for first in range(0, len(items), together):
        for b, group in itertools.product(range(shape.batch), range(shape.groups)):
            for tile, part in items[first : first + together]:
                levels = s.levels if tile >= key_tiles - s.fine_tiles else 0
                residue, modulus = s.residue(part, levels)
                count = sum(steps[b % len(steps)][tile][residue::modulus])
                if s.parts == 1 and levels == 0:
                    yield Block(count)
                    continue
                slot = b, group, tile, part % s.slots
                yield Block(count, slot, add if part >= s.slots else store)


def peer_blocks(shape: Shape, mask: RowIntervals) -> Iterator[Block]:
    """FlashAttention-2's."""
    counts = touching(mask, ROWS, PEER_KEYS).sum(2).tolist()
    for _head in range(shape.heads):
        for b in range(shape.batch):
            yield from map(Block, counts[b % len(counts)])


def sm_use(blocks: Iterator[Block], slots: int) -> float:
    """Steps over the time of all slots until the last block ends."""
    ends, turns, total = [0.0] * slots, {}, 0
    for block in blocks:
        end = heapq.heappop(ends) + block.steps
        if block.slot:
            end = turns[block.slot] = max(end, turns.get(block.slot, 0.0)) + block.sum_steps
        heapq.heappush(ends, end)
        total += block.steps
    return total / (max(ends) * slots)


def _sm70_blocks(steps: Tensor, batch: int, heads: int, together: int) -> Iterator[Block]:
    """Of steps [sequences, tiles], so many tiles of a head one after another."""
    of_sequences = steps.tolist()
    for first in range(0, steps.shape[1], together):
        for b, _head in itertools.product(range(batch), range(heads)):
            tiles = of_sequences[b % len(of_sequences)]
            yield from map(Block, tiles[first : first + together])


def v100_use(shape: Shape, mask: RowIntervals) -> float:
    """SM use of a V100's kernels for the gradients of queries and of keys, one after the other.

    They have three and four products; a step is 32 rows or keys of a tile of the others.
    """
    tile, slots = 128 if shape.head_dim <= 128 else 64, V100_SMS
    if shape.head_dim <= 64:
        slots *= 2
    of_rows = touching(mask, tile, TILE).sum(1).flip(1)
    of_keys = touching(mask, TILE, tile).sum(2) * (shape.heads // shape.groups)
    every = of_rows.shape[1]
    queries = sm_use(_sm70_blocks(of_rows, shape.batch, shape.heads, every), slots)
    keys = sm_use(_sm70_blocks(of_keys, shape.batch, shape.groups, V100_TOGETHER), slots)
    return 7 / (3 / queries + 4 / keys)


@cache
def mask_of(name: str, length: int, documents: int = 8) -> RowIntervals:
    """Of one sequence; packed: causal documents of lengths 1, 2, 3 ... times a unit."""
    if name == "full":
        return masks.full(1, length, length)
    if name == "causal":
        return masks.causal(1, length)
    unit = length // (documents * (documents + 1) // 2)
    lengths = [unit * (i + 1) for i in range(documents)]
    lengths[-1] += length - sum(lengths)
    return masks.packed([lengths], length)


def uses(shape: Shape, mask: RowIntervals, sms: int) -> tuple[float, float]:
    """SM use of ours and of FlashAttention-2's grid."""
    blocks_per_sm = Schedule.of(shape).blocks_per_sm
    ours = sm_use(our_blocks(shape, mask), sms * blocks_per_sm)
    return ours, sm_use(peer_blocks(shape, mask), sms)


def main() -> None:
    """Print a table: SM use of ours / FlashAttention-2's grid, which is for A100 and later."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mask", choices=("causal", "full", "packed"), default="causal")
    parser.add_argument("--documents", type=int, default=8, help="of a packed sequence")
    options = parser.parse_args()
    head = f"| {options.mask} | {' | '.join(SMS)} | V100"
    print(f"{head} | blocks | parts of a tile | partial sums, MiB |")
    print("|---" * 7 + "|")
    for shape in SHAPES:
        mask, s = mask_of(options.mask, shape.length, options.documents), Schedule.of(shape)
        cells = ["{:.0%} / {:.0%}".format(*uses(shape, mask, sms)) for sms in SMS.values()]
        cells.append(f"{v100_use(shape, mask):.0%}")
        tiles = -(-shape.length // s.keys)
        blocks = shape.batch * shape.groups * (tiles + s.levels * s.fine_tiles) * s.parts
        fine = f"; down to 1/{s.parts << s.levels} in the last {s.fine_tiles}" if s.levels else ""
        cells += [str(blocks), f"{s.parts}{fine}", f"{s.partial_bytes / MIB:.0f}"]
        print(f"| {shape.name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
