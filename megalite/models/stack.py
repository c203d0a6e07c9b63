"""A stack of blocks with what surrounds it: the encoder, or the decoder."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from megalite.distributed.collectives import shard_bounds
from megalite.distributed.mesh import Mesh
from megalite.distributed.transfer import moved
from megalite.layers.embedding import VocabParallelEmbedding
from megalite.layers.layer import Initial, Layer
from megalite.layers.linear import Projection
from megalite.layers.region import own_rows
from megalite.models.batch import Stream
from megalite.models.block import Block
from megalite.models.config import ModelConfig
from megalite.models.context import (
    Context,
    KeyValueCache,
    alibi_slopes,
    relative_bucket,
)
from megalite.models.norm import Norm
from megalite.models.rope import rotation, window_rotation
from megalite.models.sinusoids import sinusoids
from megalite.ops import Dropout, RowIntervals
from megalite.ops import embedding as embed_rows


class Table(Layer):
    """Learned position embeddings [rows, E], copied to every tp process."""

    def __init__(self, mesh: Mesh, rows: int, width: int, std: float) -> None:
        """Declare the table."""
        super().__init__(mesh)
        self.add("weight", (rows, width), Initial(std), rows=1)

    def forward(self, positions: Tensor) -> Tensor:
        """Look up [B, S'] positions."""
        weight = self.local("weight", self.mesh.sequence_parallel)
        return embed_rows(weight, positions.long())


class RelativeBias(Layer):
    """T5's bias: a number for each head and bucket of distance, shared by a stack's layers."""

    def __init__(self, config: ModelConfig, mesh: Mesh, both_ways: bool) -> None:
        """Declare the table [N, buckets], split over tp by heads."""
        super().__init__(mesh)
        self.config, self.both_ways = config, both_ways
        shape = config.num_heads, config.relative_buckets
        std = config.deviation("relative", config.relative_buckets, config.num_heads)
        self.add("weight", shape, Initial(std), shard=0, rows=1)

    def forward(self, distance: Tensor) -> Tensor:
        """Give [N/tp, distances] fp32 for int64 key - query distances."""
        config = self.config
        bucket = relative_bucket(
            distance, self.both_ways, config.relative_buckets, config.relative_max_distance
        )
        return self.local("weight").float()[:, bucket]


RunBlock = Callable[[int, Block, Tensor, Context, Tensor | None], Tensor]


def run_block(
    _number: int, block: Block, x: Tensor, context: Context, memory: Tensor | None
) -> Tensor:
    """Run a block as it is."""
    return block(x, context, memory)


class Stack(nn.Module):
    """The blocks [first, last) of an encoder or a decoder, keyed by their number in the model.

    Attributes:
        run_block: runs a block of a given number, counted from the first one here; whoever trains
            may put another in its place, such as one that makes activations again.
        keeps_products: matrix products are kept for the backward pass as they are, so nothing is
            written over them.
    """

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
        self.run_block: RunBlock = run_block
        self.keeps_products = False
        is_decoder = name == "decoder"
        has_cross = is_decoder and config.is_encoder_decoder
        width, is_first = config.embedding_width, blocks[0] == 0
        self.embedding: VocabParallelEmbedding | None = None
        self.positions: Table | None = None
        self.project: Projection | None = None
        self.embedding_norm: Norm | None = None
        self.relative: RelativeBias | None = None
        self.norm: Norm | None = None
        if is_first and not is_decoder and config.separate_embeddings:
            std = config.deviation("embedding", width, config.vocab_size)
            self.embedding = VocabParallelEmbedding(mesh, config.vocab_size, width, Initial(std))
        if is_first and config.position == "learned":
            rows = config.max_positions + config.position_offset
            std = config.deviation("positions", config.hidden_size, rows)
            self.positions = Table(mesh, rows, config.hidden_size, std)
        if is_first and width != config.hidden_size:
            std = config.deviation("projection", width, config.hidden_size)
            self.project = Projection(mesh, config.hidden_size, width, Initial(std))
        if is_first and config.embedding_norm:
            self.embedding_norm = Norm(config, mesh)
        if config.position == "relative":
            self.relative = RelativeBias(config, mesh, both_ways=not is_decoder)
        self.layers = nn.ModuleDict(
            {
                str(i): Block(config, mesh, f"{name}.layers.{i}", has_cross, config.window_of(i))
                for i in range(blocks[0], blocks[1])
            }
        )
        layers = config.num_layers if is_decoder else config.num_encoder_layers
        for i, block in zip(range(*blocks), self.blocks(), strict=True):
            block.dropout = config.dropout_of(i, layers)
        if is_last and config.final_norm:
            self.norm = Norm(config, mesh)

    def blocks(self) -> Iterator[Block]:
        """The blocks, in order."""
        for block in self.layers.values():
            assert isinstance(block, Block)
            yield block

    def embed(
        self, shared: VocabParallelEmbedding | None, stream: Stream, context: Context
    ) -> Tensor:
        """Embed tokens [B, S]: [B, S, D], or [B, S/tp, D] under sequence parallelism.

        Args:
            shared: the model's embedding; None where this stack has its own.
            stream: what it reads.
            context: of the batch.
        """
        config = self.config
        embedding = shared if self.embedding is None else self.embedding
        assert embedding is not None
        x = embedding(stream.tokens)
        if config.embedding_scale != 1.0:
            x = x * config.embedding_scale
        if self.project is not None:
            x = self.project(x)
        if self.positions is not None:
            rows = own_rows(stream.positions, self.mesh) + config.position_offset
            x = x + self.positions(rows)
        if config.position == "sinusoid":
            table = sinusoids(config.max_positions, config.hidden_size, x.device)
            rows = own_rows(stream.positions, self.mesh)
            x = x + embed_rows(table, rows.long()).to(x.dtype)
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        rate = config.dropout if config.embedding_dropout is None else config.embedding_dropout
        return context.drop(x, rate, f"{self.name}.embedding", self.mesh)

    def forward(self, x: Tensor, context: Context, memory: Tensor | None = None) -> Tensor:
        """Run this stack's blocks, and the final norm where it is here."""
        for number, block in enumerate(self.blocks()):
            x = self.run_block(number, block, x, context, memory)
        return x if self.norm is None else self.norm(x)

    def context(
        self,
        stream: Stream,
        random: Dropout | None,
        cache: KeyValueCache | None = None,
        cross: RowIntervals | None = None,
    ) -> Context:
        """Make what the blocks share, once a batch.

        Args:
            stream: what this stack reads.
            random: dropout, or None.
            cache: of earlier rows, or None.
            cross: the mask over the encoder's rows.
        """
        tables = rotation(self.config, stream.positions)
        past = stream.mask.num_keys - stream.length
        return Context(
            length=stream.length,
            mask=stream.mask,
            cross=cross,
            tables=tables,
            bias=self._bias(stream.length, past, stream.positions.device),
            dropout=random,
            cache=cache,
            keeps_products=self.keeps_products,
            window_tables=window_rotation(self.config, stream.positions, tables),
            looks_both_ways=self.name == "encoder",
        )

    def _bias(self, length: int, past: int, device: torch.device) -> Tensor | None:
        """The bias of each distance: index key - query + length - 1, query counted without past."""
        if self.config.position not in ("relative", "alibi") or length == 0:
            return None
        distance = torch.arange(2 * length + past - 1, device=device) - (length - 1 + past)
        if self.relative is not None:
            return self.relative(distance)
        first, last = shard_bounds(self.config.num_heads, self.mesh.tp)
        slopes = moved(torch.tensor(alibi_slopes(self.config.num_heads)[first:last]), device)
        if self.config.alibi_scale != 1.0:
            slopes = slopes * self.config.alibi_scale
        return slopes[:, None] * distance.float()
