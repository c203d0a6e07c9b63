"""A conversation with a model: its rounds, what of them fits the model, and the next answer."""

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Literal

from megalite.data.chat.turns import Turn
from megalite.engine.model import Model
from megalite.errors import DataError
from megalite.generation.answer import Asked, answering
from megalite.generation.prompts import Prompt
from megalite.generation.sampling import SamplingConfig
from megalite.models.config import ModelConfig
from megalite.stages.samples import decode_with
from megalite.tools.speaker import Speaker

RESERVE = 4  # a round is left out before an answer would have less than 1/4 of the positions
Reason = Literal["end", "limit", "full", "stopped"]


def room_for_answer(prompt: Prompt, model: ModelConfig) -> int:
    """Tokens that an answer may have behind a prompt; below 1: the prompt is too long."""
    if len(prompt.encoder_tokens) > model.max_positions:
        return 0
    return model.max_positions - len(prompt.tokens)


class Interrupt:
    """Whether Ctrl-C asked to stop, inside of :func:`interruptible`."""

    asked = False


@contextmanager
def interruptible() -> Iterator[Interrupt]:
    """Let a first Ctrl-C in the block only be noted, and put back what was there before.

    A second one raises ``KeyboardInterrupt``. Outside the main thread nothing is caught.
    """
    interrupt = Interrupt()

    def note(_number: int, _frame: FrameType | None) -> None:
        if interrupt.asked:
            raise KeyboardInterrupt
        interrupt.asked = True

    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)


@dataclass(frozen=True)
class Said:
    """An answer, and how it came to its end.

    Attributes:
        text: of the answer.
        num_tokens: of it.
        reason: by itself (end), at the most tokens that were allowed (limit), at the model's last
            position (full), or stopped.
        left_out: earlier rounds that are no longer part of the conversation.
    """

    text: str
    num_tokens: int
    reason: Reason
    left_out: int


@dataclass
class Talk:
    """A conversation that goes on.

    Attributes:
        speaker: how it is written.
        model: answers.
        sampling: how its answers are drawn.
        stops: texts that end an answer.
        system: the system message; empty: none.
        rounds: a question and its answer each.
    """

    speaker: Speaker
    model: Model
    sampling: SamplingConfig
    stops: Sequence[str] = ()
    system: str = ""
    rounds: list[tuple[Turn, Turn]] = field(default_factory=list)
    _num_answers: int = 0

    def reset(self) -> None:
        """Forget the rounds; the system message stays."""
        self.rounds.clear()

    def ask(self, question: str, show: Callable[[str], None]) -> Said:
        """Answer a question; Ctrl-C stops the answer, and what there is of it is the answer.

        Args:
            question: what the user says next.
            show: is given the answer's text as it comes.

        Raises:
            DataError: the question doesn't fit the model, or its template.
        """
        asked = Turn("user", question)
        prompt, left_out = self._fitting(asked)
        del self.rounds[:left_out]
        room = room_for_answer(prompt, self.speaker.model_config)
        limit = min(self.sampling.max_new_tokens, room)
        parts: list[str] = []

        def take(_number: int, text: str) -> None:
            parts.append(text)
            show(text)

        ending = replace(self.speaker.ending(self.stops), on_text=take, look_every=1)
        device = self.speaker.device
        orders = Asked([prompt], [self._num_answers], 1, device, [limit])
        with interruptible() as interrupt:
            writing = answering(decode_with(self.model), orders, self.sampling, ending)
            while writing.step():
                if interrupt.asked:
                    writing.close(0)
        self._num_answers += 1
        found = writing.answers()
        text, count = "".join(parts), int(found.lengths[0])
        reason: Reason = "limit" if limit < room else "full"
        if count < limit or bool(found.ended[0]):
            reason = "end" if bool(found.ended[0]) else "stopped"
        if text:
            self.rounds.append((asked, Turn("assistant", text)))
        return Said(text, count, reason, left_out)

    def _fitting(self, question: Turn) -> tuple[Prompt, int]:
        """The prompt of as many of the last rounds as fit, and how many are left out."""
        model = self.speaker.model_config
        wanted = min(self.sampling.max_new_tokens, max(model.max_positions // RESERVE, 1))
        system = [Turn("system", self.system)] if self.system else []
        for left_out in range(len(self.rounds) + 1):
            before = [turn for one in self.rounds[left_out:] for turn in one]
            prompt = self.speaker.prompt([*system, *before, question])
            if not prompt.tokens:
                raise DataError("has no tokens; an answer needs one to start from")
            if room_for_answer(prompt, model) >= wanted:
                return prompt, left_out
        if room_for_answer(prompt, model) < 1:
            read = len(prompt.encoder_tokens) or len(prompt.tokens)
            raise DataError(
                f"the question takes {read} tokens with what stands around it, the model has "
                f"{model.max_positions} positions: shorten it"
            )
        return prompt, len(self.rounds)
