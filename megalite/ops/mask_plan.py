"""The tile plan of a mask: what of it a kernel must visit, made once a batch."""

import torch
from torch import Tensor

TILE = 32  # query rows and keys an entry of the plan


def plan_reference(start: Tensor, end: Tensor, num_keys: int) -> tuple[Tensor, Tensor]:
    """The tile plan in plain PyTorch; see ``mask_plan`` in docs/design.md.

    Args:
        start: int32 [B, Sq].
        end: int32 [B, Sq].
        num_keys: number of keys.

    Returns:
        rows: int32 [B, ceil(Sq/32), 4]: min start and max end of non-empty rows (num_keys and 0
            where there is none), max start and min end of all rows.
        keys: int32 [B, ceil(num_keys/32), 3]: [first, last) query row that touches the run, and
            a word whose bit j says that some row attends to key j of the run.
    """
    batch, queries = start.shape
    empty = start >= end
    tiles = -(-queries // TILE)
    spare = tiles * TILE - queries

    def tile(values: Tensor, fill: int) -> Tensor:
        padded = torch.nn.functional.pad(values, (0, spare), value=fill)
        return padded.view(batch, tiles, TILE)

    rows = torch.stack(
        (
            tile(start.masked_fill(empty, num_keys), num_keys).amin(-1),
            tile(end.masked_fill(empty, 0), 0).amax(-1),
            tile(start, 0).amax(-1),
            tile(end, num_keys).amin(-1),
        ),
        -1,
    )
    first_key = torch.arange(0, max(num_keys, 1), TILE, device=start.device, dtype=torch.int32)
    first_key = first_key[: -(-num_keys // TILE)]
    touches = (start[..., None] < first_key + TILE) & (end[..., None] > first_key)
    touches &= ~empty[..., None]  # [B, Sq, ceil(K/32)]
    row = torch.arange(queries, device=start.device, dtype=torch.int32)[None, :, None]
    first = torch.where(touches, row, queries).amin(1)
    last = torch.where(touches, row + 1, 0).amax(1)
    first = torch.where(last == 0, 0, first)
    keys = torch.stack((first, last, _attended(start, end, num_keys)), -1)
    return rows.to(torch.int32), keys.to(torch.int32)


def _attended(start: Tensor, end: Tensor, num_keys: int) -> Tensor:
    """Which keys some row attends to, 32 a word: int64 [B, ceil(num_keys/32)]."""
    key = torch.arange(num_keys, device=start.device)
    used = ((key >= start[..., None]) & (key < end[..., None])).any(1)  # [B, num_keys]
    used = torch.nn.functional.pad(used, (0, -num_keys % TILE)).unflatten(1, (-1, TILE))
    return (used.long() << torch.arange(TILE, device=start.device)).sum(-1)
