"""A stack of blocks with what surrounds it: the encoder, or the decoder."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from megalite.models.block import Block
from megalite.models.config import ModelConfig
from megalite.models.norm import Norm
from megalite.models.recompute import Recompute
from megalite.models.stream import (
    Dropout,
    KeyValueCache,
    Stream,
    alibi_slopes,
    relative_bucket,
    rotation,
)
from megalite.ops import RowIntervals
from megalite.parallel.collectives import shard_bounds
from megalite.parallel.layers import Initial, Layer, Projection, VocabParallelEmbedding, own_rows
from megalite.parallel.mesh import Mesh


class Table(Layer):
    """Learned position embeddings [rows, E], copied to every tp process."""

    def __init__(self, mesh: Mesh, rows: int, width: int, std: float) -> None:
        """Declare the table."""
        super().__init__(mesh)
        self.add("weight", (rows, width), Initial(std))

    def forward(self, positions: Tensor) -> Tensor:
        """Look up [B, S'] positions."""
        weight = self.local("weight", self.mesh.sequence_parallel)
        return functional.embedding(positions, weight)


class RelativeBias(Layer):
    """T5's bias: a number for each head and bucket of distance, shared by a stack's layers."""

    def __init__(self, config: ModelConfig, mesh: Mesh, both_ways: bool) -> None:
        """Declare the table [N, buckets], split over tp by heads."""
        super().__init__(mesh)
        self.config, self.both_ways = config, both_ways
        shape = config.num_heads, config.relative_buckets
        self.add("weight", shape, Initial(config.init_std), shard=0)

    def forward(self, distance: Tensor) -> Tensor:
        """Give [N/tp, distances] fp32 for int64 key - query distances."""
        config = self.config
        bucket = relative_bucket(
            distance, self.both_ways, config.relative_buckets, config.relative_max_distance
        )
        return self.local("weight").float()[:, bucket]


class Stack(nn.Module):
    """The blocks [first, last) of an encoder or a decoder, keyed by their number in the model."""

    def __init__(
        self, config: ModelConfig, mesh: Mesh, name: str, blocks: tuple[int, int], is_last: bool
    ) -> None:
        """Declare the weights.

        Args:
            config: of the model.
            mesh: the mesh.
            name: ``encoder`` or ``decoder``.
            blocks: [first, last); block 0 comes with the embedding's parts.
            is_last: whether the last block of the stack is here, and the final norm with it.
        """
        super().__init__()
        self.config, self.mesh, self.name = config, mesh, name
        self.recompute = Recompute()
        is_decoder = name == "decoder"
        has_cross = is_decoder and config.is_encoder_decoder
        width = config.embedding_width
        if blocks[0] == 0 and config.position == "learned":
            rows = config.max_positions + config.position_offset
            self.positions = Table(mesh, rows, config.hidden_size, config.init_std)
        if blocks[0] == 0 and width != config.hidden_size:
            self.project = Projection(mesh, config.hidden_size, width, Initial(config.init_std))
        if blocks[0] == 0 and config.embedding_norm:
            self.embedding_norm = Norm(config, mesh)
        if config.position == "relative":
            self.relative = RelativeBias(config, mesh, both_ways=not is_decoder)
        self.layers = nn.ModuleDict(
            {
                str(i): Block(config, mesh, f"{name}.layers.{i}", has_cross)
                for i in range(blocks[0], blocks[1])
            }
        )
        if is_last and config.final_norm:
            self.norm = Norm(config, mesh)

    def embed(self, embedding: VocabParallelEmbedding, tokens: Tensor, stream: Stream, positions):
        """Embed tokens [B, S]: [B, S, D], or [B, S/tp, D] under sequence parallelism."""
        config = self.config
        x = embedding(tokens)
        if config.embedding_scale != 1.0:
            x = x * config.embedding_scale
        if hasattr(self, "project"):
            x = self.project(x)
        if hasattr(self, "positions"):
            rows = own_rows(positions, self.mesh) + config.position_offset
            x = x + self.positions(rows)
        if hasattr(self, "embedding_norm"):
            x = self.embedding_norm(x)
        return stream.drop(x, config.dropout, f"{self.name}.embedding", self.mesh)

    def forward(self, x: Tensor, stream: Stream, memory: Tensor | None = None) -> Tensor:
        """Run this stack's blocks, and the final norm where it is here."""
        for number, block in enumerate(self.layers.values()):
            if self.recompute.covers(number) and torch.is_grad_enabled():
                x = checkpoint(block, x, stream, memory, **self.recompute.options())
            else:
                x = block(x, stream, memory)
        return self.norm(x) if hasattr(self, "norm") else x

    def stream(
        self,
        intervals: tuple[Tensor, Tensor],
        positions: Tensor,
        random: Dropout | None,
        cache: KeyValueCache | None = None,
        cross: RowIntervals | None = None,
    ) -> Stream:
        """Make what the blocks share, once a batch.

        Args:
            intervals: start and end, int32 [B, S].
            positions: [B, S] or [B, S, 2].
            random: dropout, or None.
            cache: of earlier rows, or None.
            cross: the mask over the encoder's rows.
        """
        length = positions.shape[1]
        past = cache.length if cache is not None else 0
        mask = RowIntervals(*intervals, length + past)
        tables = rotation(self.config, positions)
        bias = self._bias(length, past, positions.device)
        keeps_products = self.recompute.kind == "selective"
        return Stream(length, mask, cross, tables, bias, random, cache, keeps_products)

    def _bias(self, length: int, past: int, device: torch.device) -> Tensor | None:
        """The bias of each distance: index key - query + length - 1, query counted without past."""
        if self.config.position not in ("relative", "alibi"):
            return None
        distance = torch.arange(2 * length + past - 1, device=device) - (length - 1 + past)
        if self.config.position == "relative":
            return self.relative(distance)
        first, last = shard_bounds(self.config.num_heads, self.mesh.tp)
        slopes = torch.tensor(alibi_slopes(self.config.num_heads)[first:last], device=device)
        return slopes[:, None] * distance.float()
