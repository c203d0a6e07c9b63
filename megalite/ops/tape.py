"""A function of tensors that is called again and again: after a few calls without Python.

Its calls are recorded: which operators they called, on what. Where two in a row are the same, later
calls run those operators, with the same constants, so they give the same bits; the first may differ
from them, as it may make memory that the others use. All that differs from call to call must stand
in the arguments, or in tensors that the function writes to in place. What reads a number from a
tensor or waits for another process can't be repeated, and is called each time.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from megalite.ops.backends import tape_class

Function = Callable[..., Sequence[Tensor]]
MOST_DIFFERENCES = 2  # of calls from those before them; then none is recorded any more


class Trust:
    """What functions of one kind share: whether they are the same operators at each call.

    Attributes:
        is_proven: two calls of one were the same.
        differences: calls that were not what the call before them was.
        why_not: why none is repeated; empty where nothing is known against it.
    """

    def __init__(self) -> None:
        """Know nothing."""
        self.is_proven = False
        self.differences = 0
        self.why_not = ""


class Taped:
    """A function whose calls are the same operators on tensors of the same shapes."""

    def __init__(self, function: Function, trust: Trust) -> None:
        """Have no recording yet.

        Args:
            function: of tensors, to a list of tensors; under ``torch.inference_mode``. A call may
                write in place to memory that it knows, and change nothing else.
            trust: of functions that differ in their shapes alone: once two calls of one were the
                same, one call of another is enough.
        """
        self._function, self._trust = function, trust
        self._first: Any = None
        self._tape: Any = None

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        """Call it, or run what it called before."""
        if self._tape is not None:
            outputs: Sequence[Tensor] = self._tape.run(list(inputs))
            return outputs
        if self._trust.why_not:
            return self._function(*inputs)
        return self._recorded(inputs)

    def _recorded(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        make = tape_class(inputs[0])
        if make is None:
            self._trust.why_not = "this backend has no tapes"
            return self._function(*inputs)
        tape, outputs = make(), list[Tensor]()
        tape.begin(list(inputs))
        try:
            outputs = list(self._function(*inputs))
        finally:
            why_not = tape.end(outputs)
        self._judge(tape, why_not)
        return outputs

    def _judge(self, tape: Any, why_not: str) -> None:
        trust, first = self._trust, self._first
        if not why_not and first is not None and not first.equals(tape):
            trust.differences, first = trust.differences + 1, None
            if trust.differences > MOST_DIFFERENCES:
                why_not = "its calls differ"
        trust.why_not = why_not
        if why_not:
            self._first = None
        elif trust.is_proven or first is not None:
            trust.is_proven, self._first, self._tape = True, None, tape
        else:
            self._first = tape
