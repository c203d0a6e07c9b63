"""Answers to prompts by one call: the engine of commands, of evaluation and of rollouts."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from megalite.generation.decoder import Forward, Pipelined
from megalite.generation.generate import Answers, Ending, Writing, writing
from megalite.generation.prompts import Prompt, batch_prompts
from megalite.generation.room import Room
from megalite.generation.sampling import SamplingConfig
from megalite.generation.slots import SlotDecoder, Supply

SLOTS = 32  # answers that are written side by side where nothing says how many


@dataclass(frozen=True)
class Asked:
    """What is to be answered.

    Attributes:
        prompts: one for each answer; equal ones share memory.
        sample_ids: the number of each answer, of which its draws are a function.
        slots: most answers that are written side by side.
        device: of the model.
        limits: most tokens of each answer; None: as the sampling says.
    """

    prompts: Sequence[Prompt]
    sample_ids: Sequence[int]
    slots: int = SLOTS
    device: torch.device | str = "cpu"
    limits: Sequence[int] | None = None

    def limits_under(self, config: SamplingConfig) -> Sequence[int]:
        """Most tokens of each answer."""
        return self.limits or [config.max_new_tokens] * len(self.prompts)

    def room(self, config: SamplingConfig) -> Room:
        """The memory that the answers need."""
        return Room.of(self.prompts, self.limits_under(config), self.slots)


class Turns:
    """Groups of answers that take turns: while one's tokens are drawn, the model reads others'."""

    def __init__(self, groups: Sequence[Writing], ending: Ending) -> None:
        """Write by groups, whose answers have numbers of their own."""
        self._groups, self._ending = groups, ending

    def step(self) -> bool:
        """Draw the next token of each open answer; False: none is open, and none waits."""
        return any([group.step() for group in self._groups])

    def close(self, number: int) -> None:
        """End an answer that is open at the next token, whatever it is."""
        for group in self._groups:
            group.close(number)

    def answers(self) -> Answers:
        """What was written, as wide as the longest."""
        first, *others = (group.answers() for group in self._groups if group.rows_were_begun)
        for other in others:
            first = _joined(first, other, self._ending.pad_id)
        return first


def _joined(some: Answers, others: Answers, pad_id: int) -> Answers:
    """Answers that stand on one of two sheets each, with a length of 0 on the other."""
    is_other = others.lengths > 0

    def chosen(one: Tensor, other: Tensor, filling: float = 0) -> Tensor:
        width = max(one.shape[-1], other.shape[-1])
        one, other = (pad(x, (0, width - x.shape[-1]), value=filling) for x in (one, other))
        return torch.where(is_other.view(-1, *[1] * (one.dim() - 1)), other, one)

    assert some.log_probs is not None and others.log_probs is not None
    return Answers(
        chosen(some.tokens, others.tokens, pad_id),
        chosen(some.lengths, others.lengths),
        chosen(some.ended, others.ended),
        chosen(some.log_probs, others.log_probs),
    )


def answering(decode: Forward, asked: Asked, config: SamplingConfig, ending: Ending) -> Turns:
    """Answers to prompts, ``asked.slots`` of them side by side, token by token; see :func:`answer`.

    A pipeline's slots are divided into groups that take turns.

    Raises:
        DataError: a prompt is empty, or only some have something for an encoder.
    """
    limits = asked.limits_under(config)
    batch = batch_prompts(asked.prompts, asked.sample_ids, ending.pad_id).to(asked.device)
    room, count = asked.room(config), len(asked.prompts)
    supply = Supply(room)
    groups = min(decode.groups, asked.slots, count) if isinstance(decode, Pipelined) else 1
    decoders = [SlotDecoder(decode, own, asked.device, supply) for own in room.split(groups, count)]
    decoders[0].ask_all(asked.prompts, limits)
    return Turns([writing(one, batch, config, ending, limits) for one in decoders], ending)


def answer(decode: Forward, asked: Asked, config: SamplingConfig, ending: Ending) -> Answers:
    """Answer prompts, ``asked.slots`` of them side by side.

    Args:
        decode: runs the model on a batch and a cache; gives the last row's logits.
        asked: what is answered.
        config: how tokens are chosen.
        ending: what ends an answer.

    Returns:
        The answers, on ``asked.device``.

    Raises:
        DataError: a prompt is empty, or only some have something for an encoder.
    """
    own = answering(decode, asked, config, ending)
    while own.step():
        pass
    return own.answers()
