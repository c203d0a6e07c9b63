"""Continuous batching: a fixed number of slots, each given to the next prompt when it is free.

What is computed for an answer is a function of its prompt alone: a prompt is read in a pass of its
own, and a token is read by products and attention that look at its own row (on a GPU by passes of
always equally many rows). So an answer is the same beside any others, in any slot and order.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from megalite.generation.blocks import (
    BLOCK_ROWS,
    SPARE,
    Blocks,
    Reading,
    Rows,
    Stepping,
    num_blocks,
)
from megalite.generation.decoder import Forward, Pipelined, Take, begin_pass
from megalite.generation.prompts import Prompt, batch_prompts
from megalite.models.batch import IGNORE, Batch, Stream
from megalite.models.config import ModelConfig
from megalite.ops import RowIntervals
from megalite.ops.linear import is_by_rows, products_by_rows
from megalite.ops.paged_attention import KEY_TILE
from megalite.ops.tape import Taped, Trust


@dataclass(frozen=True)
class Room:
    """The memory that answers need, known before the first is begun.

    Attributes:
        slots: most answers that are written side by side.
        blocks: of the decoder's keys and values.
        cross_blocks: of the encoder's.
        most_keys: of one answer with its prompt, rounded up.
        most_read: rows of the longest that an encoder reads.
    """

    slots: int
    blocks: int
    cross_blocks: int
    most_keys: int
    most_read: int

    @classmethod
    def of(cls, prompts: Sequence[Prompt], limits: Sequence[int], slots: int) -> "Room":
        """The room for the answers that need most, side by side.

        Args:
            prompts: one for each answer.
            limits: most tokens of each answer.
            slots: most answers that are written side by side.
        """
        keys = [len(p.tokens) + n for p, n in zip(prompts, limits, strict=True)]
        read = [len(p.encoder_tokens) for p in prompts]
        held = num_blocks(max(len(p.tokens) for p in prompts))
        blocks = sorted(map(num_blocks, keys), reverse=True)[:slots]
        cross = sorted(map(num_blocks, read), reverse=True)[:slots]
        most = -(-max(keys) // KEY_TILE) * KEY_TILE
        return cls(slots, sum(blocks) + held, sum(cross) + cross[0], most, max(read))

    @classmethod
    def for_any(cls, slots: int, most_keys: int, most_read: int = 0) -> "Room":
        """The room for any answers that come.

        Args:
            slots: most answers that are written side by side.
            most_keys: tokens of the longest answer with its prompt.
            most_read: tokens of the longest that an encoder reads; 0 without an encoder.
        """
        blocks, cross = ((slots + 1) * num_blocks(rows) for rows in (most_keys, most_read))
        return cls(slots, blocks, cross, -(-most_keys // KEY_TILE) * KEY_TILE, most_read)

    def split(self, groups: int, count: int) -> list["Room"]:
        """The same blocks for groups of slots that are as equal as can be.

        Args:
            groups: number of them.
            count: of answers, no less than groups; slots beyond it are left out.
        """
        if groups == 1:
            return [self]
        slots = min(self.slots, count)
        each, more = divmod(slots, groups)
        return [replace(self, slots=each + (number < more)) for number in range(groups)]

    def size_bytes(self, model: ModelConfig, number_bytes: int) -> int:
        """Memory of keys and values of a whole model, whose numbers have so many bytes."""
        row = 2 * model.num_layers * model.kv_heads * model.head_dim * number_bytes
        cross = self.cross_blocks + 1 if model.is_encoder_decoder else 0
        return (self.blocks + 1 + cross) * BLOCK_ROWS * row


@dataclass
class _Prompt:
    """A prompt that was read, held for the answers to it that are not begun yet."""

    key: tuple[object, ...]
    blocks: list[int]
    cross: list[int]
    logits: Take
    position: Tensor


class Supply:
    """What decoders share whose slots take turns: the prompts that wait, and all blocks."""

    def __init__(self, room: Room) -> None:
        """Have no prompts yet; ``room`` is that of all answers that will be asked for."""
        self.own, self.cross = Blocks(room.blocks), Blocks(room.cross_blocks)
        self.asked: dict[int, tuple[Prompt, int]] = {}
        self.waiting: deque[int] = deque()
        self.held: _Prompt | None = None


@dataclass
class _Slot:
    """An answer that is being written: its blocks, and what its next row needs."""

    blocks: list[int]
    cross: list[int]
    length: int
    read: int
    position: Tensor


class SlotDecoder:
    """Writes answers to many prompts, some side by side; see the module.

    Whoever samples calls :meth:`refill` for the first logits of answers that are begun,
    :meth:`advance` for those of their next tokens, and :meth:`select` to leave some.
    """

    def __init__(
        self,
        forward: Forward,
        room: Room,
        device: torch.device | str = "cpu",
        supply: Supply | None = None,
    ) -> None:
        """Have no prompts yet.

        Args:
            forward: runs the model on a batch and a cache without dropout; gives the logits of the
                last row, [B, 1, V], on ``device``.
            room: for all answers that will be asked for.
            device: of the model.
            supply: of other decoders too; None: of this one alone.
        """
        self._forward, self.room = forward, room
        self._device = torch.device(device)
        self._supply = supply or Supply(room)
        self._own, self._cross = self._supply.own, self._supply.cross
        self._slots: list[_Slot] = []
        self._step: _Step | None = None
        self._taped: Taped | None = None  # the pass over the rows of this step
        self._trust = Trust()

    def ask(self, number: int, prompt: Prompt, limit: int) -> None:
        """Hold a prompt until :meth:`refill`.

        Args:
            number: of its answer; of none that is not begun.
            prompt: as :func:`batch_prompts` takes it; equal ones that follow each other share
                memory.
            limit: most tokens of the answer.
        """
        self._supply.asked[number] = prompt, limit
        self._supply.waiting.append(number)

    def ask_all(self, prompts: Sequence[Prompt], limits: Sequence[int]) -> None:
        """Hold prompts, numbered from 0, equal ones one after another; see :meth:`ask`."""
        keys = [_key(prompt) for prompt in prompts]
        first = {key: number for number, key in reversed(list(enumerate(keys)))}
        for number in sorted(range(len(prompts)), key=lambda number: first[keys[number]]):
            self.ask(number, prompts[number], limits[number])

    @property
    def size_bytes(self) -> int:
        """Memory of keys and values here."""
        return self._own.size_bytes + self._cross.size_bytes

    @torch.inference_mode()
    def refill(self) -> tuple[list[int], Tensor] | None:
        """Begin answers in the free slots.

        Returns:
            Their numbers, and the logits [n, V] fp32 of their first tokens; they stand behind the
            rows that are here. None: no slot is free, or nothing waits.
        """
        waiting = self._supply.waiting
        count = min(self.room.slots - len(self._slots), len(waiting))
        if count == 0:
            return None
        numbers = [waiting.popleft() for _ in range(count)]
        self._leave_step()
        begun = [self._begin(number) for number in numbers]
        return numbers, torch.cat([_last_rows(take(), 1) for take in begun])

    def _begin(self, number: int) -> Take:
        """Put an answer into a slot; gives what waits for the logits of its first token."""
        supply = self._supply
        prompt, limit = supply.asked.pop(number)
        key = _key(prompt)
        if supply.held is None or supply.held.key != key:
            self._drop_held()
            supply.held = self._read(prompt, key)
        held, length = supply.held, len(prompt.tokens)
        needed = num_blocks(length + limit)
        whole = length // BLOCK_ROWS
        blocks = self._own.use(held.blocks[:whole])
        blocks += self._own.take(needed - whole)
        if length % BLOCK_ROWS:
            self._own.copy(held.blocks[whole], blocks[whole])
        cross, read = self._cross.use(held.cross), len(prompt.encoder_tokens)
        self._slots.append(_Slot(blocks, cross, length, read, held.position))
        return held.logits

    def _drop_held(self) -> None:
        held, self._supply.held = self._supply.held, None
        if held is not None:
            self._own.release(held.blocks)
            self._cross.release(held.cross)

    def _read(self, prompt: Prompt, key: tuple[object, ...]) -> _Prompt:
        """Read a prompt in a pass of its own."""
        batch = batch_prompts([prompt], [0]).to(self._device)
        length, read = len(prompt.tokens), len(prompt.encoder_tokens)
        blocks, cross = self._own.take(num_blocks(length)), self._cross.take(num_blocks(read))
        rows = Rows.first(blocks, length, self._device)
        cross_rows = Rows.first(cross or [SPARE], read, self._device)
        cache = Reading(self._own, rows, self._cross, cross_rows)
        logits = begin_pass(self._forward, batch, cache)
        return _Prompt(key, blocks, cross, logits, batch.decoder.positions[:, -1:])

    @torch.inference_mode()
    def advance(self, tokens: Tensor) -> Take:
        """Read one more token of each answer, [B] int64.

        Returns:
            What waits for the next logits, [B, V] fp32.
        """
        count = len(self._slots)
        if self._step is None:
            by_rows = is_by_rows(tokens.new_empty(0, dtype=torch.float32))
            rows = count if by_rows else self.room.slots
            self._step = _Step.of(self._slots, rows, self.room, self._device)
        for slot in self._slots:
            slot.length += 1
        if isinstance(self._forward, Pipelined):
            take = self._pass(tokens)
            return lambda: _last_rows(take(), count)
        if self._taped is None:
            self._taped = Taped(lambda x: [_last_rows(self._pass(x)(), count)], self._trust)
        logits = self._taped(tokens)[0]
        return lambda: logits

    def _pass(self, tokens: Tensor) -> Take:
        """Begin the pass over one more token of each answer."""
        assert self._step is not None
        batch, cache = self._step.next(tokens, self._own, self._cross)
        with products_by_rows():
            return begin_pass(self._forward, batch, cache)

    def select(self, sequences: Tensor) -> None:
        """Keep these answers, [B'] int64, each once; the slots of the others are free."""
        kept = sequences.tolist()
        self._leave_step()
        for number in set(range(len(self._slots))) - set(kept):
            self._own.release(self._slots[number].blocks)
            self._cross.release(self._slots[number].cross)
        self._slots = [self._slots[number] for number in kept]

    def _leave_step(self) -> None:
        """Before rows come or go: each slot gets its own next row back."""
        if self._step is not None:
            for slot, position in zip(self._slots, self._step.positions.split(1), strict=False):
                slot.position = position
            self._step = self._taped = None


class _Step:
    """The rows of a pass over the slots, while the same answers are in them: all on the device."""

    def __init__(self, stream: tuple[Tensor, Tensor], cross: RowIntervals | None, room: Room):
        """Hold lengths and positions of rows."""
        self.lengths, self.positions = stream
        self.cross, self._room = cross, room
        self.tables = self.cross_tables = torch.empty(0)
        self.growth = torch.ones_like(self.lengths)

    @classmethod
    def of(cls, slots: Sequence[_Slot], rows: int, room: Room, device: torch.device) -> "_Step":
        """The slots' rows, and behind them rows that stand for nothing, up to ``rows``."""
        spare = rows - len(slots)
        own = _table([slot.blocks for slot in slots], rows, device)
        cross = _table([slot.cross for slot in slots], rows, device)
        lengths = torch.tensor([slot.length for slot in slots] + [0] * spare, dtype=torch.int32)
        read = torch.tensor([[slot.read] for slot in slots] + [[0]] * spare, dtype=torch.int32)
        positions = torch.cat([slot.position for slot in slots])
        filling = positions.new_zeros(spare, *positions.shape[1:])
        mask = None
        if room.most_read:
            mask = RowIntervals(torch.zeros_like(read), read, room.most_read).to(device)
        step = cls((lengths.to(device), torch.cat((positions, filling))), mask, room)
        step.tables, step.cross_tables = own, cross
        step.growth[len(slots) :] = 0
        step.lengths[len(slots) :] = 1
        return step

    def next(self, tokens: Tensor, own: Blocks, cross: Blocks) -> tuple[Batch, Stepping]:
        """The pass that reads ``tokens`` of the slots' rows."""
        self.lengths += self.growth
        # of two axes of positions the first stays at the mask that is filled, the second counts
        step = torch.ones_like(self.positions)
        if self.positions.dim() == 3:
            step[..., 0] = 0
        self.positions += step * self.growth.view(-1, *[1] * (step.dim() - 1))
        spare = len(self.lengths) - len(tokens)
        tokens = torch.cat((tokens, tokens.new_zeros(spare)))[:, None]
        keys = self._room.most_keys
        start = keys - self.lengths[:, None]
        mask = RowIntervals(start, torch.full_like(start, keys), keys)
        batch = Batch(
            Stream(tokens, self.positions, mask),
            torch.full_like(tokens, IGNORE),
            torch.zeros_like(tokens[:, 0]),
            cross=self.cross,
        )
        rows = Rows.last(self.tables, self.lengths)
        return batch, Stepping(own, self.tables, self.lengths, rows, cross, self.cross_tables)


def _last_rows(logits: Tensor, count: int) -> Tensor:
    """The first sequences' last logits, [count, V] fp32, of [B, S, V]."""
    return logits[:count, -1].float()


def _table(blocks: Sequence[Sequence[int]], rows: int, device: torch.device) -> Tensor:
    """Blocks of each row, int32 [rows, T], the spare one behind them."""
    width = max(1, *(len(own) for own in blocks))
    table = torch.full((rows, width), SPARE, dtype=torch.int32)
    for row, own in enumerate(blocks):
        table[row, : len(own)] = torch.tensor(list(own), dtype=torch.int32)
    return table.to(device)


def _key(prompt: Prompt) -> tuple[object, ...]:
    """What two prompts must share to be one."""
    positions = None if prompt.positions is None else tuple(prompt.positions)
    return tuple(prompt.tokens), prompt.prefix, tuple(prompt.encoder_tokens), positions
