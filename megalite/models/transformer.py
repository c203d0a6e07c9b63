"""The model: embedding, a list of blocks or two, head."""

from typing import Any

import torch
from torch import Tensor, nn

from megalite.distributed.mesh import Mesh
from megalite.layers.embedding import VocabParallelEmbedding
from megalite.layers.layer import Initial
from megalite.layers.region import enter
from megalite.models.batch import Batch, Stream
from megalite.models.block import Block
from megalite.models.config import ModelConfig
from megalite.models.context import KeyValueCache
from megalite.models.head import Head
from megalite.models.outputs import Kept, Output
from megalite.models.part import Part
from megalite.models.stack import Stack
from megalite.ops import Dropout


class Transformer(nn.Module):
    """A whole model, or a pipeline stage's part of one, under the whole model's names.

    Attributes:
        guests: the heads of other models that have this one's frozen weights, by their names; None
            where there are none.
        asked: the guest whose head gives the results; empty: this model's own.
    """

    def __init__(self, config: ModelConfig, mesh: Mesh, part: Part | None = None) -> None:
        """Declare the parameters in fp32, without storage (on the meta device).

        :func:`megalite.engine.initial.initialise` gives them storage and values after sharding.

        Args:
            config: its shape.
            mesh: where it runs.
            part: what of it is here; None is everything.
        """
        super().__init__()
        self.config, self.mesh = config, mesh
        self.part = part = part or Part.whole(config)
        self.embedding: VocabParallelEmbedding | None = None
        self.encoder: Stack | None = None
        self.decoder: Stack | None = None
        self.head: Head | None = None
        self.guests: nn.ModuleDict | None = None
        self.asked = ""
        self.is_tied = config.head == "lm" and config.tie_embeddings
        with torch.device("meta"):
            starts = part.starts_decoder
            starts |= part.starts_encoder and not config.separate_embeddings
            if starts or (part.ends and self.is_tied):
                rows, width = config.vocab_size, config.embedding_width
                std = config.deviation("embedding", width, rows)
                self.embedding = VocabParallelEmbedding(mesh, rows, width, Initial(std))
            if part.has_encoder:
                is_last = part.encoder[1] == config.num_encoder_layers
                self.encoder = Stack(config, mesh, "encoder", part.encoder, is_last)
            if part.has_decoder:
                is_last = part.decoder[1] == config.num_layers
                self.decoder = Stack(config, mesh, "decoder", part.decoder, is_last)
            if part.ends:
                self.head = Head(config, mesh)

    def stacks(self) -> list[Stack]:
        """The stacks that are here: encoder, decoder or both."""
        return [stack for stack in (self.encoder, self.decoder) if stack is not None]

    def blocks(self) -> list[Block]:
        """The blocks that are here, the encoder's first."""
        return [block for stack in self.stacks() for block in stack.blocks()]

    def forward(
        self,
        batch: Batch,
        output: Output,
        *flow: Tensor,
        dropout_seed: int | None = None,
        cache: KeyValueCache | None = None,
    ) -> Any:
        """Run the model, or this part of it, on a micro-batch.

        Args:
            batch: tokens, row intervals, labels.
            output: what to give at the end.
            flow: what the part before gave: (decoder rows), (encoder rows), or (encoder rows,
                decoder rows), each [B, S, D] or [B, S/tp, D] under sequence parallelism.
            dropout_seed: of the step; None is no dropout.
            cache: for decoding; the encoder runs only when the batch has its stream. Where the
                decoder reads no row, the cache gets what later ones attend to.

        Returns:
            What ``output`` asks, or the next part's flow.
        """
        random = None
        if dropout_seed is not None:
            random = Dropout(dropout_seed, batch.sample_ids)
        rows = list(flow)
        memory = None
        if batch.encoder is not None:
            memory = self._encode(batch.encoder, rows.pop(0) if rows else None, random)
        if self.decoder is None:
            return () if memory is None else (memory,)
        hidden = self._decode(self.decoder, batch, rows, memory, random, cache)
        if self.head is None:
            return (hidden,) if memory is None else (memory.view_as(memory), hidden)
        if isinstance(output, Kept):
            return hidden
        tied = None
        if self.is_tied and self.embedding is not None:
            tied = self.embedding.local("weight")
        head = self.guests[self.asked] if self.guests is not None and self.asked else self.head
        return head(hidden, batch, output, tied)

    def _encode(self, stream: Stream, rows: Tensor | None, random: Dropout | None) -> Tensor | None:
        if self.encoder is None:
            return rows
        context = self.encoder.context(stream, random)
        if rows is None:
            rows = self.encoder.embed(self.embedding, stream, context)
        return self.encoder(rows, context)

    def _decode(
        self,
        stack: Stack,
        batch: Batch,
        rows: list[Tensor],
        memory: Tensor | None,
        random: Dropout | None,
        cache: KeyValueCache | None,
    ) -> Tensor:
        if memory is not None and batch.cross is not None:
            memory = enter(memory, self.mesh, batch.cross.num_keys)
        context = stack.context(batch.decoder, random, cache, batch.cross)
        if memory is not None and batch.decoder.length == 0:
            hidden = memory[:, :0]
        elif self.part.starts_decoder and self.embedding is not None:
            hidden = stack.embed(self.embedding, batch.decoder, context)
        else:
            (hidden,) = rows
        return stack(hidden, context, memory)
