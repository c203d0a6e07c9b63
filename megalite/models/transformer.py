"""The model: embedding, a list of blocks or two, head."""

import torch
from torch import Tensor, nn

from megalite.models.batch import Batch
from megalite.models.config import ModelConfig
from megalite.models.head import Head
from megalite.models.initial import initialise
from megalite.models.outputs import Output
from megalite.models.part import Part
from megalite.models.recompute import Recompute
from megalite.models.stack import Stack
from megalite.models.stream import Dropout, KeyValueCache
from megalite.ops import RowIntervals
from megalite.parallel.layers import Initial, VocabParallelEmbedding, enter
from megalite.parallel.mesh import Mesh

Flow = tuple[Tensor, ...]


class Transformer(nn.Module):
    """A whole model, or a pipeline stage's part of one, under the whole model's names."""

    def __init__(
        self,
        config: ModelConfig,
        mesh: Mesh,
        *,
        part: Part | None = None,
        seed: int | None = 0,
    ) -> None:
        """Build the model in fp32 on the mesh's device.

        Args:
            config: its shape.
            mesh: where it runs.
            part: what of it is here; None is everything.
            seed: of the initial values; None leaves the parameters without storage (on the meta
                device), for :func:`megalite.models.initial.initialise` after sharding.
        """
        super().__init__()
        self.config, self.mesh = config, mesh
        self.part = part = part or Part.whole(config)
        is_tied = config.head == "lm" and config.tie_embeddings
        with torch.device("meta"):
            if part.starts_encoder or part.starts_decoder or (part.ends and is_tied):
                self.embedding = VocabParallelEmbedding(
                    mesh, config.vocab_size, config.embedding_width, Initial(config.init_std)
                )
            if part.has_encoder:
                is_last = part.encoder[1] == config.num_encoder_layers
                self.encoder = Stack(config, mesh, "encoder", part.encoder, is_last)
            if part.has_decoder:
                is_last = part.decoder[1] == config.num_layers
                self.decoder = Stack(config, mesh, "decoder", part.decoder, is_last)
            if part.ends:
                self.head = Head(config, mesh)
        self.is_tied = is_tied
        if seed is not None:
            initialise(self, seed)

    def stacks(self) -> list[Stack]:
        """The stacks that are here: encoder, decoder or both."""
        return [self.get_submodule(name) for name in ("encoder", "decoder") if hasattr(self, name)]

    def stages_here(self) -> list["Transformer"]:
        """Itself: a Pipeline has several."""
        return [self]

    def set_recompute(self, recompute: Recompute) -> None:
        """Choose which activations the backward pass makes again."""
        for stack in self.stacks():
            stack.recompute = recompute

    def owned_names(self) -> set[str] | None:
        """Names of the parameters that this part counts in global sums; None: all it has."""
        return None

    def forward(
        self,
        batch: Batch,
        output: Output,
        *flow: Tensor,
        dropout_seed: int | None = None,
        cache: KeyValueCache | None = None,
    ):
        """Run the model, or this part of it, on a micro-batch.

        Args:
            batch: tokens, row intervals, labels.
            output: what to give at the end.
            flow: what the part before gave: (decoder rows), (encoder rows), or (encoder rows,
                decoder rows), each [B, S, D] or [B, S/tp, D] under sequence parallelism.
            dropout_seed: of the step; None is no dropout.
            cache: for decoding; the encoder runs only when the batch has encoder tokens.

        Returns:
            What ``output`` asks, or the next part's flow.
        """
        random = None
        if dropout_seed is not None:
            random = Dropout(dropout_seed, batch.sample_ids)
        rows = list(flow)
        memory = None
        if self.config.is_encoder_decoder:
            has_memory = batch.encoder_tokens is not None
            memory = self._encode(batch, rows.pop(0) if rows and has_memory else None, random)
        if not self.part.has_decoder:
            return () if memory is None else (memory,)
        hidden = self._decode(batch, rows, memory, random, cache)
        if not self.part.ends:
            return (hidden,) if memory is None else (memory.view_as(memory), hidden)
        tied = self.embedding.local("weight") if self.is_tied else None
        return self.head(hidden, batch, output, tied)

    def _encode(self, batch: Batch, rows: Tensor | None, random: Dropout | None) -> Tensor | None:
        if batch.encoder_tokens is None or not self.part.has_encoder:
            return rows
        intervals = batch.encoder_start, batch.encoder_end
        stream = self.encoder.stream(intervals, batch.encoder_positions, random)
        if self.part.starts_encoder:
            rows = self.encoder.embed(
                self.embedding, batch.encoder_tokens, stream, batch.encoder_positions
            )
        return self.encoder(rows, stream)

    def _decode(
        self,
        batch: Batch,
        rows: list[Tensor],
        memory: Tensor | None,
        random: Dropout | None,
        cache: KeyValueCache | None,
    ) -> Tensor:
        cross = None
        if self.config.is_encoder_decoder:
            tokens = batch.encoder_tokens
            length = cache.memory_length if tokens is None else tokens.shape[1]
            cross = RowIntervals(batch.cross_start, batch.cross_end, length)
            if memory is not None:
                memory = enter(memory, self.mesh, length)
            if cache is not None:
                cache.memory_length = length
        intervals = batch.start, batch.end
        stream = self.decoder.stream(intervals, batch.positions, random, cache, cross)
        if self.part.starts_decoder:
            hidden = self.decoder.embed(self.embedding, batch.tokens, stream, batch.positions)
        else:
            (hidden,) = rows
        return self.decoder(hidden, stream, memory)
