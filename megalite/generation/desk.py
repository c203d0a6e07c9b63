"""Orders that come while others are written: one thread writes all of them, each in a slot.

An order begins as soon as a slot is free, beside those that are being written; what its answer is
depends on none of them (see :mod:`megalite.generation.slots`).
"""

import threading
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from megalite.generation.decoder import Forward
from megalite.generation.generate import Begun, Ending, Writing
from megalite.generation.prompts import Prompt, batch_prompts
from megalite.generation.room import Room
from megalite.generation.sampling import SamplingConfig
from megalite.generation.scores import Scored
from megalite.generation.slots import SlotDecoder

Reason = Literal["stop", "length", "closed", "failed"]


@dataclass(frozen=True)
class End:
    """How an order ended.

    Attributes:
        reason: an end token or stop text (stop), its limit (length), on request (closed) or by an
            error (failed).
        num_tokens: of the answer, its end token included.
        why: of one that failed or was closed for all.
    """

    reason: Reason
    num_tokens: int = 0
    why: str = ""


@dataclass(frozen=True, eq=False)
class Order:
    """An answer that is asked for.

    Attributes:
        prompt: what it starts from.
        sampling: how its tokens are chosen.
        limit: most tokens.
        sample_id: of which, with the sampling's seed, its draws are a function.
        stops: texts that end it.
        on_text: is given its next text, in the desk's thread.
        on_end: is called once, behind its last text, in the desk's thread or who stops it.
        likeliest: how many of the likeliest tokens are scored beside each of its own.
        on_scored: is given the score of its next token, before that token's text; None: of none.
    """

    prompt: Prompt
    sampling: SamplingConfig
    limit: int
    sample_id: int
    stops: Sequence[str]
    on_text: Callable[[str], None]
    on_end: Callable[[End], None]
    likeliest: int = 0
    on_scored: Callable[[Scored], None] | None = None


class DeskFull(Exception):
    """More orders wait than are allowed."""


class DeskStopped(Exception):
    """No order is taken any more."""


class Desk:
    """Takes orders from any thread; :meth:`run` writes their answers in one."""

    def __init__(
        self,
        decode: Forward,
        room: Room,
        ending: Ending,
        most_waiting: int,
        device: torch.device | str = "cpu",
    ) -> None:
        """Have no orders yet.

        Args:
            decode: runs the model on a batch and a cache; gives the last row's logits.
            room: for as many answers as are written side by side, each as long as any may be.
            ending: what ends every answer; its ``decode`` makes texts of tokens.
            most_waiting: orders that may wait for a slot.
            device: of the model.
        """
        self._decode, self._room, self._most_waiting = decode, room, most_waiting
        self._device = torch.device(device)
        self._ending = replace(
            ending,
            on_text=self._text,
            on_end=self._end,
            on_scored=self._scored,
            look_every=1,
        )
        self._changed = threading.Condition()
        self._waiting: deque[Order] = deque()
        self._closing: list[Order] = []
        self._why_stopped = ""
        self._places: dict[int, Order] = {}  # of the desk's thread
        self._fresh()

    @property
    def end_ids(self) -> Collection[int]:
        """Tokens that end every answer."""
        return self._ending.end_ids

    @property
    def num_orders(self) -> int:
        """Orders that wait or are written."""
        return len(self._waiting) + len(self._places)

    def ask(self, orders: Sequence[Order]) -> None:
        """Take some orders, all of them or none.

        Raises:
            DeskFull: too many would wait.
            DeskStopped: it takes none any more.
        """
        with self._changed:
            if self._why_stopped:
                raise DeskStopped(self._why_stopped)
            free = self._room.slots - len(self._places)
            if len(self._waiting) + len(orders) > self._most_waiting + max(free, 0):
                raise DeskFull(f"{len(self._waiting)} answers wait already")
            self._waiting.extend(orders)
            self._changed.notify()

    def close(self, orders: Sequence[Order]) -> None:
        """End some orders wherever they are; what has ended already is left alone."""
        with self._changed:
            self._closing += orders
            self._changed.notify()

    def stop(self, why: str) -> None:
        """Take no more orders and end all; :meth:`run` returns."""
        with self._changed:
            self._why_stopped = why
            self._changed.notify()

    def run(self) -> None:
        """Write answers until :meth:`stop`."""
        while self._take_turn():
            try:
                self._writing.step()
            except Exception as error:  # whatever it is, it is told to those who wait
                self._fail(f"{type(error).__name__}: {error}")
        self._fail(self._why_stopped, "closed")

    def _take_turn(self) -> bool:
        """Wait for something to do, seat orders where slots are free; False: it is stopped."""
        with self._changed:
            while not (self._waiting or self._places or self._why_stopped or self._closing):
                self._changed.wait()
            closing, self._closing = self._closing, []
            unseated = [order for order in closing if order in self._waiting]
            for order in unseated:
                self._waiting.remove(order)
            if self._why_stopped:
                return False
            self._seat()
        for order in unseated:
            order.on_end(End("closed"))
        for place, order in self._places.items():
            if order in closing:
                self._writing.close(place)
        return True

    def _seat(self) -> None:
        free = (place for place in range(self._room.slots) if place not in self._places)
        for place in list(free)[: len(self._waiting)]:
            order = self._waiting.popleft()
            self._places[place] = order
            self._decoder.ask(place, order.prompt, order.limit)

    def _fresh(self) -> None:
        """Begin with empty slots."""
        self._decoder = SlotDecoder(self._decode, self._room, self._device)
        shape = (self._room.slots, self._room.most_keys)
        self._writing = Writing(self._decoder, self._begun, shape, self._ending, penalises=True)

    def _begun(self, numbers: Sequence[int]) -> Begun:
        orders = [self._places[number] for number in numbers]
        ids = [order.sample_id for order in orders]
        batch = batch_prompts([order.prompt for order in orders], ids).to(self._device)
        return Begun(
            batch.decoder,
            batch.sample_ids,
            [order.limit for order in orders],
            [order.sampling for order in orders],
            [order.stops for order in orders],
            [None if order.on_scored is None else order.likeliest for order in orders],
        )

    def _scored(self, number: int, scored: Scored) -> None:
        """Tell the score of a token, unless it ends the answer."""
        on_scored = self._places[number].on_scored
        if on_scored is not None and scored.token not in self._ending.end_ids:
            on_scored(scored)

    def _text(self, number: int, text: str) -> None:
        self._places[number].on_text(text)

    def _end(self, number: int) -> None:
        order = self._places.pop(number)
        length = int(self._writing.lengths[number])
        if bool(self._writing.ended[number]):
            order.on_end(End("stop", length))
        else:
            order.on_end(End("length" if length >= order.limit else "closed", length))

    def _fail(self, why: str, reason: Reason = "failed") -> None:
        """End all orders that are written, and where it is stopped those that wait."""
        with self._changed:
            orders = list(self._places.values())
            self._places.clear()
            if self._why_stopped:
                orders += self._waiting
                self._waiting.clear()
        self._fresh()
        for order in orders:
            order.on_end(End(reason, why=why))
