"""A Transformer block: attention, cross-attention where there is an encoder, feed-forward."""

import math
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from megalite.models.attention import Attention
from megalite.models.config import ModelConfig
from megalite.models.feed_forward import FeedForward
from megalite.models.norm import Norm
from megalite.models.stream import Stream
from megalite.parallel.mesh import Mesh
from megalite.parallel.products import Matrix, column_products

Sublayer = Callable[[Sequence[Tensor], Stream], Tensor]


def output_std(config: ModelConfig) -> float:
    """Initial standard deviation of weights that add to the residual."""
    if not config.scaled_init:
        return config.init_std
    return config.init_std / math.sqrt(2 * max(config.num_layers, config.num_encoder_layers))


class Block(nn.Module):
    """One block; what it adds to and how is the config's choice.

    - pre: ``x + f(norm(x))``; post: ``norm(alpha x + f(x))``, alpha the residual scale;
    - parallel: ``x + attention(norm(x)) + feed_forward(norm(x))``.
    """

    def __init__(self, config: ModelConfig, mesh: Mesh, name: str, has_cross: bool) -> None:
        """Declare the weights; ``name`` is the block's in the model, such as decoder.layers.3."""
        super().__init__()
        std = output_std(config)
        self.config, self.mesh, self.name = config, mesh, name
        self.attention_norm = Norm(config, mesh)
        self.attention = Attention(config, mesh, f"{name}.attention", std)
        if has_cross:
            self.cross_norm = Norm(config, mesh)
            self.cross = Attention(config, mesh, f"{name}.cross", std)
        if config.parallel_block != "one_norm":
            self.ffn_norm = Norm(config, mesh)
        self.ffn = FeedForward(config, mesh, std)

    def forward(self, x: Tensor, stream: Stream, memory: Tensor | None = None) -> Tensor:
        """Map the residual stream.

        Args:
            x: [B, S, D], or [B, S/tp, D] under sequence parallelism.
            stream: masks, tables, bias, dropout and cache of the batch.
            memory: the encoder's rows [B, Se, D], on all of tp.
        """
        if self.config.parallel_block != "no":
            return self._parallel(x, stream)
        attention, ffn, cross = self.attention, self.ffn, getattr(self, "cross", None)
        x = self._add(x, "attention", attention.matrices(), stream, attention.to_itself)
        if cross is not None:
            query = [cross.query.matrix()]
            x = self._add(x, "cross", query, stream, lambda q, s: cross.to_encoder(*q, memory, s))
        return self._add(x, "ffn", ffn.matrices(), stream, lambda products, _: ffn(products))

    def _add(
        self, x: Tensor, name: str, matrices: list[Matrix], stream: Stream, sublayer: Sublayer
    ) -> Tensor:
        """Add one sub-layer, which maps the input times ``matrices`` to [B, S, D]{tp}."""
        config = self.config
        norm, output = getattr(self, f"{name}_norm"), getattr(self, name).output
        is_pre = config.norm_position == "pre"
        products = column_products(norm(x) if is_pre else x, matrices, self.mesh, stream.length)
        y = self._drop(output.finish(sublayer(products, stream)), name, stream)
        residual = x if config.residual_scale == 1.0 else x * config.residual_scale
        return residual + y if is_pre else norm(residual + y)

    def _parallel(self, x: Tensor, stream: Stream) -> Tensor:
        """Attention and feed-forward beside each other; with one norm they share an input too."""
        mesh, length = self.mesh, stream.length
        columns, ffn_columns = self.attention.matrices(), self.ffn.matrices()
        y = self.attention_norm(x)
        if self.config.parallel_block == "two_norms":
            products = column_products(y, columns, mesh, length)
            products += column_products(self.ffn_norm(x), ffn_columns, mesh, length)
        else:
            products = column_products(y, columns + ffn_columns, mesh, length)
        partial = self.attention.to_itself(products[:3], stream) + self.ffn(products[3:])
        out = self.attention.output.finish(partial)
        if self.ffn.output.has_bias:
            out = out + self.ffn.output.local("bias", self.mesh.sequence_parallel)
        return x + self._drop(out, "ffn", stream)

    def _drop(self, y: Tensor, sublayer: str, stream: Stream) -> Tensor:
        site = f"{self.name}.{sublayer}.output"
        return stream.drop(y, self.config.dropout, site, self.mesh)
