"""Continuous batching: a fixed number of slots, each given to the next prompt when it is free.

What is computed for an answer is a function of its prompt alone: a prompt but for its last token is
read in passes of its own, and that token and those behind it by products and attention that look at
their own row (on a GPU by passes of always equally many rows). So an answer is the same beside any
others, in any slot and order; the head and an encoder's decoder read their weights for many prompts
at once.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from megalite.generation.blocks import (
    BLOCK_ROWS,
    SPARE,
    Blocks,
    Reading,
    Rows,
    Stepping,
    num_blocks,
)
from megalite.generation.decoder import Forward, Pipelined, Take, begin_pass, growth
from megalite.generation.prompts import Prompt, batch_prompts
from megalite.generation.room import Room, pieces
from megalite.models.batch import IGNORE, Batch, Stream
from megalite.models.outputs import Kept
from megalite.ops import RowIntervals
from megalite.ops.linear import is_by_rows, products_by_rows
from megalite.ops.tape import Taped, Trust


@dataclass
class _Prompt:
    """A prompt that was read, held for the answers to it that are not begun yet."""

    key: tuple[object, ...]
    blocks: list[int]
    cross: list[int]
    position: Tensor  # [1, 1] or [1, 1, 2], of the row before its last one


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
    """An answer that is being written: its blocks, rows that they hold, and the last position."""

    blocks: list[int]
    cross: list[int]
    length: int
    read: int
    position: Tensor


class SlotDecoder:
    """Writes answers to many prompts, some side by side; see the module.

    Whoever samples calls :meth:`refill` to begin answers, :meth:`advance` for the logits of their
    next tokens, and :meth:`select` to leave some.
    """

    def __init__(
        self,
        forward: Forward,
        room: Room,
        device: torch.device | str = "cpu",
        supply: Supply | None = None,
        trust: Trust | None = None,
    ) -> None:
        """Have no prompts yet.

        Args:
            forward: runs the model, on ``device``.
            room: for all answers that will be asked for.
            device: of the model.
            supply: of other decoders too; None: of this one alone.
            trust: of passes over next tokens; None: nothing is known yet.
        """
        self._forward, self.room = forward, room
        self._device = torch.device(device)
        self._supply = supply or Supply(room)
        self._own, self._cross = self._supply.own, self._supply.cross
        self._slots: list[_Slot] = []
        self._step: _Step | None = None  # the last one
        self._is_stepping = False  # whether its rows are those of the slots
        self._taped: Taped | None = None  # the pass over its rows
        self._trust = trust or Trust()

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
            Their numbers, and the last token of each one's prompt, [n] int64, which is the next
            one to read; they stand behind the rows that are here. None: no slot is free, or
            nothing waits.
        """
        waiting = self._supply.waiting
        count = min(self.room.slots - len(self._slots), len(waiting))
        if count == 0:
            return None
        numbers = [waiting.popleft() for _ in range(count)]
        self._leave_step()
        most = self._forward.groups if isinstance(self._forward, Pipelined) else 0
        under_way, last = deque[Take](), list[int]()
        for number in numbers:
            prompt, limit = self._supply.asked.pop(number)
            last.append(prompt.tokens[-1])
            under_way += self._begin(prompt, limit)
            while len(under_way) > most:
                under_way.popleft()()
        for take in under_way:
            take()
        return numbers, torch.tensor(last, device=self._device)

    def _begin(self, prompt: Prompt, limit: int) -> list[Take]:
        """Put an answer into a slot; gives what waits for passes that read its prompt."""
        supply, key, passes = self._supply, _key(prompt), list[Take]()
        if supply.held is None or supply.held.key != key:
            self._drop_held()
            supply.held, passes = self._read(prompt, key)
        held, known = supply.held, len(prompt.tokens) - 1
        needed = num_blocks(known + 1 + limit)
        whole = known // BLOCK_ROWS
        blocks = self._own.use(held.blocks[:whole])
        blocks += self._own.take(needed - whole)
        if known % BLOCK_ROWS:
            self._own.copy(held.blocks[whole], blocks[whole])
        cross, read = self._cross.use(held.cross), len(prompt.encoder_tokens)
        self._slots.append(_Slot(blocks, cross, known, read, held.position))
        return passes

    def _drop_held(self) -> None:
        held, self._supply.held = self._supply.held, None
        if held is not None:
            self._own.release(held.blocks)
            self._cross.release(held.cross)

    def _read(self, prompt: Prompt, key: tuple[object, ...]) -> tuple[_Prompt, list[Take]]:
        """Begin to read a prompt by itself, in the passes of :func:`pieces`.

        Its last token is left to the pass that reads those of all answers, which reads it again
        where others see it.
        """
        batch = batch_prompts([prompt], [0]).to(self._device)
        last_position = batch.decoder.positions[:, -1:]
        length, read = max(len(prompt.tokens) - 1, prompt.prefix), len(prompt.encoder_tokens)
        blocks, cross = self._own.take(num_blocks(length)), self._cross.take(num_blocks(read))
        rows = Rows.first(blocks, length, self._device)
        cross_rows = Rows.first(cross or [SPARE], read, self._device)
        bounds, passes = list(pieces(length, prompt.prefix)), list[Take]()
        if read and not bounds:
            bounds = [(0, 0)]  # the encoder runs all the same
        for first, last in bounds:
            seen = rows.piece(0, last) if first else None
            cache = Reading(self._own, rows.piece(first, last), seen, self._cross, cross_rows)
            with products_by_rows():  # at so few rows no slower than a BLAS
                passes.append(begin_pass(self._forward, batch.piece(first, last), cache, Kept()))
        return _Prompt(key, blocks, cross, last_position - growth(last_position)), passes

    @torch.inference_mode()
    def advance(self, tokens: Tensor) -> Take:
        """Read one more token of each answer, [B] int64.

        Returns:
            What waits for the next logits, [B, V] fp32, which stand until the next call.
        """
        count, step = len(self._slots), self._step_of_slots()
        for slot in self._slots:
            slot.length += 1
        tokens = pad(tokens, (0, step.rows - count))
        if isinstance(self._forward, Pipelined):
            take = self._pass(tokens)
            return lambda: _last_rows(take())[:count]
        if self._taped is None:
            self._taped = Taped(lambda x: [_last_rows(self._pass(x)())], self._trust, step.state)
        logits = self._taped(tokens)[0][:count]
        return lambda: logits

    def _step_of_slots(self) -> "_Step":
        """The rows of the next pass; those of the last one where as many are asked for."""
        if not self._is_stepping:
            by_rows = is_by_rows(torch.empty(0, dtype=torch.float32, device=self._device))
            rows = len(self._slots) if by_rows else self.room.slots
            if self._step is None or self._step.rows != rows:
                self._step = _Step(rows, self.room, self._slots[0].position)
                self._taped = None
            self._step.load(self._slots)
            self._is_stepping = True
        assert self._step is not None
        return self._step

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
        """Before rows come or go: each slot gets its own position back."""
        if self._is_stepping and self._step is not None:
            positions = self._step.positions.clone().split(1)
            for slot, position in zip(self._slots, positions, strict=False):
                slot.position = position
        self._is_stepping = False


class _Step:
    """The rows of a pass over the slots, in memory that stays where it is; all on the device.

    Attributes:
        rows: number of them.
        positions: [rows, 1] or [rows, 1, 2] int64, of the last tokens that were read.
    """

    def __init__(self, rows: int, room: Room, position: Tensor) -> None:
        """Make rows that stand for nothing.

        Args:
            rows: number of them.
            room: of the answers.
            position: of one, as :class:`_Slot` has it.
        """
        self.rows, self._room, device = rows, room, position.device
        self.positions = position.new_zeros(rows, *position.shape[1:])
        self._lengths = torch.ones(rows, dtype=torch.int32, device=device)
        self._growth = torch.zeros_like(self._lengths)
        self._tables = _spare_table(rows, room.most_keys, device)
        self._cross_tables = _spare_table(rows, room.most_read, device)
        self._read = torch.zeros(rows, 1, dtype=torch.int32, device=device)
        self._cross = None
        if room.most_read:
            self._cross = RowIntervals(torch.zeros_like(self._read), self._read, room.most_read)

    @property
    def state(self) -> list[Tensor]:
        """What a pass changes for the next one, besides keys and values of the new rows."""
        return [self._lengths, self.positions]

    def load(self, slots: Sequence[_Slot]) -> None:
        """Let the first rows be those of the slots, the others stand for nothing."""
        spare = self.rows - len(slots)
        self._lengths.copy_(_int32([slot.length for slot in slots] + [1] * spare))
        self._growth.copy_(_int32([1] * len(slots) + [0] * spare))
        self._read[:, 0] = _int32([slot.read for slot in slots] + [0] * spare)
        self.positions.zero_()[: len(slots)] = torch.cat([slot.position for slot in slots])
        _fill(self._tables, [slot.blocks for slot in slots])
        _fill(self._cross_tables, [slot.cross for slot in slots])

    def next(self, tokens: Tensor, own: Blocks, cross: Blocks) -> tuple[Batch, Stepping]:
        """The pass that reads ``tokens`` of the rows, [rows] int64."""
        self._lengths += self._growth
        step = growth(self.positions)
        self.positions += step * self._growth.view(-1, *[1] * (step.dim() - 1))
        keys = self._room.most_keys
        start = keys - self._lengths[:, None]
        mask = RowIntervals(start, torch.full_like(start, keys), keys)
        batch = Batch(
            Stream(tokens[:, None], self.positions, mask),
            torch.full_like(tokens[:, None], IGNORE),
            torch.zeros_like(tokens),
            cross=self._cross,
        )
        rows = Rows.last(self._tables, self._lengths)
        return batch, Stepping(own, self._tables, self._lengths, rows, cross, self._cross_tables)


def _last_rows(logits: Tensor) -> Tensor:
    """The sequences' last logits, [B, V] fp32, of [B, S, V]."""
    return logits[:, -1].float()


def _int32(values: Sequence[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def _spare_table(rows: int, most_keys: int, device: torch.device) -> Tensor:
    """Blocks of rows that stand for nothing, int32 [rows, T]."""
    shape = rows, max(1, num_blocks(most_keys))
    return torch.full(shape, SPARE, dtype=torch.int32, device=device)


def _fill(table: Tensor, blocks: Sequence[Sequence[int]]) -> None:
    """Write the blocks of the first rows, the spare one behind and below them."""
    own = torch.full(table.shape, SPARE, dtype=torch.int32)
    for row, numbers in enumerate(blocks):
        own[row, : len(numbers)] = _int32(list(numbers))
    table.copy_(own)


def _key(prompt: Prompt) -> tuple[object, ...]:
    """What two prompts must share to be one."""
    positions = None if prompt.positions is None else tuple(prompt.positions)
    return tuple(prompt.tokens), prompt.prefix, tuple(prompt.encoder_tokens), positions
