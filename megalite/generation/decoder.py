"""A model as a source of next-token logits, token by token with a cache."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from megalite.generation.cache import Cache
from megalite.models.batch import IGNORE, Batch, Stream
from megalite.models.context import KeyValueCache
from megalite.models.outputs import LAST_ROW, Output
from megalite.ops import RowIntervals

Take = Callable[[], Tensor]  # waits for logits, and gives them at each call


class Forward(Protocol):
    """Runs a model on a batch and a cache, without dropout."""

    def __call__(self, batch: Batch, cache: KeyValueCache, output: Output = LAST_ROW) -> Tensor:
        """Give what is asked: the last row's logits, [B, 1, V], or what is of no use (``Kept``)."""


@dataclass(frozen=True)
class Pipelined:
    """A :class:`Forward` of a model whose parts stand in several processes: passes may overlap.

    Attributes:
        begin: begins a pass; all processes begin the same passes, in one order.
        groups: passes under way that keep all parts at work.
    """

    begin: Callable[[Batch, KeyValueCache, Output], Take]
    groups: int

    def __call__(self, batch: Batch, cache: KeyValueCache, output: Output = LAST_ROW) -> Tensor:
        """Run a pass to its end."""
        return self.begin(batch, cache, output)()


def begin_pass(
    forward: Forward, batch: Batch, cache: KeyValueCache, output: Output = LAST_ROW
) -> Take:
    """Begin a pass; one of a model that is whole here ends at once."""
    if isinstance(forward, Pipelined):
        return forward.begin(batch, cache, output)
    result = forward(batch, cache, output)
    return lambda: result


def growth(positions: Tensor) -> Tensor:
    """From a row's position to the next one's: of [B, 1], or of [B, 1, 2] where there are two axes.

    Of two the first stays at the mask that is filled, the second counts.
    """
    step = torch.ones_like(positions)
    if positions.dim() == 3:
        step[..., 0] = 0
    return step


class Decoder(Protocol):
    """What sampling and beam search need from a model."""

    def start(self) -> Tensor:
        """Read the prompts; give the logits [B, V] fp32 of each one's next token."""

    def advance(self, tokens: Tensor) -> Tensor:
        """Read one more token of each sequence, [B] int64; give the next logits, [B, V] fp32."""

    def select(self, sequences: Tensor) -> None:
        """Keep these sequences of the batch, [B'] int64, some perhaps several times."""


class CachedDecoder:
    """Decodes with a KV cache: the prompts in one pass, then one token of each per pass.

    The encoder, where there is one, runs only with the prompts: later batches have no encoder
    stream, and cross-attention finds its keys and values in the cache.
    """

    def __init__(self, forward: Forward, prompts: Batch, max_new_tokens: int) -> None:
        """Hold prompts until :meth:`start`.

        Args:
            forward: runs the model on a batch and a cache without dropout; gives [B, S, V], or
                the last row of it.
            prompts: from :func:`batch_prompts`.
            max_new_tokens: most calls of :meth:`advance`.
        """
        self._forward = forward
        self._batch = prompts
        self._cache = Cache(prompts.decoder.length + max_new_tokens)

    @torch.inference_mode()
    def start(self) -> Tensor:
        """Read the prompts; give the logits [B, V] fp32 of each one's next token."""
        return self._run()

    @torch.inference_mode()
    def advance(self, tokens: Tensor) -> Tensor:
        """Read one more token of each sequence, [B] int64; give the next logits, [B, V] fp32."""
        last = self._batch
        positions = last.decoder.positions[:, -1:]
        start, keys = last.decoder.mask.start[:, -1:], self._cache.length + 1
        mask = RowIntervals(start, torch.full_like(start, keys), keys)
        self._batch = replace(
            last,
            decoder=Stream(tokens[:, None], positions + growth(positions), mask),
            labels=torch.full_like(tokens[:, None], IGNORE),
            encoder=None,
            cross=None if last.cross is None else last.cross.last_row(),
        )
        return self._run()

    def select(self, sequences: Tensor) -> None:
        """Keep these sequences of the batch, [B'] int64, some perhaps several times."""
        self._batch = self._batch.select(sequences)
        self._cache.select(sequences)

    def _run(self) -> Tensor:
        logits = self._forward(self._batch, self._cache)
        self._cache.advance(self._batch.decoder.length)
        return logits[:, -1].float()
