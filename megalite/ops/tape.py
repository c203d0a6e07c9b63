"""A function of tensors that is called again and again: after a few calls without Python.

Its calls are recorded: which operators they called, on what. Where two in a row are the same, later
calls run those operators, with the same constants, so they give the same bits; the first may differ
from them, as it may make memory that the others use. All that differs from call to call must stand
in the arguments, or in tensors that the function writes to in place. What reads a number from a
tensor or waits for another process can't be repeated, and is called each time.

On a GPU they become one launch, a CUDA graph, if it gives the same bits when it is tried.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from megalite.ops.backends import tape_class
from megalite.ops.graph import Graph, graph_class

Function = Callable[..., Sequence[Tensor]]
MOST_DIFFERENCES = 2  # of calls from those before them; then none is recorded any more


class Trust:
    """What functions of one kind share: whether they are the same operators at each call.

    Attributes:
        is_proven: two calls of one were the same.
        differences: calls that were not what the call before them was.
        why_not: why none is repeated; empty where nothing is known against it.
        why_no_graph: why none becomes one launch; likewise.
    """

    def __init__(self) -> None:
        """Know nothing."""
        self.is_proven = False
        self.differences = 0
        self.why_not = self.why_no_graph = ""


class Taped:
    """A function whose calls are the same operators on tensors of the same shapes."""

    def __init__(self, function: Function, trust: Trust, state: Sequence[Tensor] = ()) -> None:
        """Have no recording yet.

        Args:
            function: of tensors, to a list of tensors; under ``torch.inference_mode``. A call may
                write in place to memory that it knows, and change nothing else.
            trust: of functions that differ in their shapes alone: once two calls of one were the
                same, one call of another is enough.
            state: memory by which a second call with the same inputs differs from the first.
        """
        self._function, self._trust, self._state = function, trust, list(state)
        self._first: Any = None
        self._tape: Any = None
        self._graph: Graph | None = None

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        """Call it, or run what it called before; what is given stands until the next call."""
        if self._graph is not None:
            return self._graph.run(inputs)
        if self._tape is not None:
            return self._run_tape(inputs)
        if self._trust.why_not:
            return self._function(*inputs)
        return self._recorded(inputs)

    def _run_tape(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """Run the tape, and where a graph may take its place the graph too, from the same state."""
        make = None if self._trust.why_no_graph else graph_class(inputs[0])
        before = [x.clone() for x in self._state] if make else []
        outputs: list[Tensor] = self._tape.run(list(inputs))
        if make is None:
            return outputs
        after = [x.clone() for x in self._state]
        _restore(self._state, before)
        try:
            graph = make(self._tape.run, inputs)
            again = [*graph.run(inputs), *self._state]
            if all(map(torch.equal, again, [*outputs, *after])):
                self._graph = graph
            else:
                self._trust.why_no_graph = "it gives other bits"
        except RuntimeError as error:
            self._trust.why_no_graph = str(error).splitlines()[0]
        _restore(self._state, after)
        if self._trust.why_no_graph:
            warnings.warn(f"no CUDA graph for decoding: {self._trust.why_no_graph}", stacklevel=2)
        return outputs

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


def _restore(state: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for x, value in zip(state, values, strict=True):
        x.copy_(value)
