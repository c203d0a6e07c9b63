"""Answers to prompts by one call: the engine of commands, of evaluation and of rollouts."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from megalite.generation.decoder import Forward
from megalite.generation.generate import Answers, Ending, Writing, writing
from megalite.generation.prompts import Prompt, batch_prompts
from megalite.generation.sampling import SamplingConfig
from megalite.generation.slots import Room, SlotDecoder

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


def answering(decode: Forward, asked: Asked, config: SamplingConfig, ending: Ending) -> Writing:
    """Answers to prompts, ``asked.slots`` of them side by side, token by token; see :func:`answer`.

    Raises:
        DataError: a prompt is empty, or only some have something for an encoder.
    """
    limits = asked.limits_under(config)
    batch = batch_prompts(asked.prompts, asked.sample_ids, ending.pad_id).to(asked.device)
    decoder = SlotDecoder(decode, asked.room(config), asked.device)
    decoder.ask_all(asked.prompts, limits)
    return writing(decoder, batch, config, ending, limits)


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
