"""Operators that were launched once, as one launch of a GPU: a CUDA graph."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class Graph:
    """What a function of tensors launches, on memory of its own."""

    def __init__(self, run: Callable[[list[Tensor]], list[Tensor]], inputs: Sequence[Tensor]):
        """Capture it; nothing is computed.

        Args:
            run: launches the same operators at each call and waits for none; it has been called
                before, so that libraries have what they need.
            inputs: tensors of a GPU, like all that it will be called with.

        Raises:
            RuntimeError: something in it can't be captured, or memory doesn't suffice.
        """
        self._inputs = [x.clone() for x in inputs]
        self._graph = torch.cuda.CUDAGraph()
        # other threads, such as one that writes a checkpoint, may go on meanwhile
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._outputs = run(self._inputs)

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Launch them for other inputs; what is given is written over by the next call."""
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        self._graph.replay()
        return self._outputs


def graph_class(tensor: Tensor) -> type[Graph] | None:
    """What captures operators on tensors of its device; None where nothing does."""
    return Graph if tensor.is_cuda else None
