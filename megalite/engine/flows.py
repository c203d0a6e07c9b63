"""What travels between the parts of a pipeline: hidden states, in one shape a step."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megalite.distributed.mesh import Mesh
from megalite.engine.model import Item, Result
from megalite.models.batch import Batch
from megalite.models.part import Part


@dataclass(frozen=True)
class Flows:
    """Shapes of what travels for one micro-batch.

    Attributes:
        decoder: meta tensor [B, S', D] of decoder rows.
        encoder: meta tensor [B, Se', D] of encoder rows, where they travel.
    """

    decoder: Tensor
    encoder: Tensor | None

    def into(self, part: Part) -> tuple[Tensor, ...]:
        """What comes into a part."""
        if part.index == 0:
            return ()
        encoder = () if self.encoder is None else (self.encoder,)
        return encoder + ((self.decoder,) if part.decoder[0] > 0 else ())

    def out_of(self, part: Part) -> tuple[Tensor, ...]:
        """What goes out of a part; the last one's is the loss."""
        if part.ends:
            return (torch.empty(1, device="meta"),)
        encoder = () if self.encoder is None else (self.encoder,)
        return encoder + ((self.decoder,) if part.decoder[1] > 0 else ())


def flows(batch: Batch, mesh: Mesh, width: int, dtype: torch.dtype, needs_grad: bool) -> Flows:
    """Shapes of what travels for a micro-batch of a model of ``width`` D."""

    def rows(tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        if mesh.sequence_parallel:
            length = -(-length // mesh.tp.size)
        shape = tokens.shape[0], length, width
        return torch.empty(shape, dtype=dtype, device="meta", requires_grad=needs_grad)

    encoder = None if batch.encoder is None else rows(batch.encoder.tokens)
    return Flows(rows(batch.decoder.tokens), encoder)


def same_shape(items: Sequence[Item]) -> list[Batch]:
    """The batches of micro-batches, padded to the longest: what travels has one shape."""
    batches = [batch for batch, _ in items]
    length = max(batch.decoder.length for batch in batches)
    encoders = [batch.encoder.length for batch in batches if batch.encoder is not None]
    return [batch.padded(length, max(encoders, default=0)) for batch in batches]


def unpadded(result: Result, length: int) -> Result:
    """A model's result, [B, S] tensors or a scalar, without the padding behind ``length`` rows."""
    if isinstance(result, tuple):
        return tuple(_unpadded(tensor, length) for tensor in result)
    return _unpadded(result, length)


def _unpadded(tensor: Tensor, length: int) -> Tensor:
    return tensor[:, :length] if tensor.dim() > 1 else tensor
