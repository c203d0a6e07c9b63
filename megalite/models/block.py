"""A Transformer block: attention, cross-attention where there is an encoder, feed-forward."""

import math
from collections.abc import Callable

from torch import Tensor, nn

from megalite.distributed.mesh import Mesh
from megalite.layers.products import column_products
from megalite.models.attention import Attention, CrossAttention
from megalite.models.config import ModelConfig
from megalite.models.context import Context
from megalite.models.feed_forward import FeedForward
from megalite.models.norm import Norm


def output_std(config: ModelConfig) -> float:
    """Initial standard deviation of weights that add to the residual."""
    if not config.scaled_init:
        return config.init_std
    return config.init_std / math.sqrt(2 * max(config.num_layers, config.num_encoder_layers))


class Block(nn.Module):
    """One block; what it adds to and how is the config's choice.

    - pre: ``alpha x + f(norm(x))``, alpha the residual scale; post: ``norm(alpha x + f(x))``;
    - both: ``alpha x + norm(f(norm(x)))``;
    - parallel: ``x + attention(norm(x)) + feed_forward(norm(x))``.
    """

    def __init__(
        self, config: ModelConfig, mesh: Mesh, name: str, has_cross: bool, window: int = 0
    ) -> None:
        """Declare the weights.

        Args:
            config: of the model.
            mesh: the mesh.
            name: the block's in the model, such as decoder.layers.3.
            has_cross: it reads an encoder.
            window: of its attention to its own stream; 0 is none.
        """
        super().__init__()
        std = output_std(config)
        self.config, self.mesh, self.name = config, mesh, name
        self.attention_norm = Norm(config, mesh)
        self.attention = Attention(config, mesh, f"{name}.attention", std, window)
        self.cross: CrossAttention | None = None
        if has_cross:
            self.cross_norm = Norm(config, mesh)
            self.cross = CrossAttention(config, mesh, f"{name}.cross", std)
        self.ffn_norm = None if config.parallel_block == "one_norm" else Norm(config, mesh)
        self.ffn = FeedForward(config, mesh, std)
        if config.norm_position == "both":
            self.attention_post_norm = Norm(config, mesh)
            if has_cross:
                self.cross_post_norm = Norm(config, mesh)
            self.ffn_post_norm = Norm(config, mesh)

    def forward(self, x: Tensor, context: Context, memory: Tensor | None = None) -> Tensor:
        """Map the residual stream.

        Args:
            x: [B, S, D], or [B, S/tp, D] under sequence parallelism.
            context: masks, tables, bias, dropout and cache of the batch.
            memory: the encoder's rows [B, Se, D], on all of tp.
        """
        if self.config.parallel_block != "no":
            return self._parallel(x, context)
        x = self._add(x, "attention", lambda y: self.attention(y, context), context)
        if self.cross is not None:
            cross = self.cross
            x = self._add(x, "cross", lambda y: cross(y, context, memory), context)
        return self._add(x, "ffn", lambda y: self.ffn(y, context.length), context)

    def _add(
        self, x: Tensor, name: str, sublayer: Callable[[Tensor], Tensor], context: Context
    ) -> Tensor:
        """Add one sub-layer, before or behind its norm, or between its two."""
        config, norm = self.config, getattr(self, f"{name}_norm")
        is_post = config.norm_position == "post"
        y = sublayer(x if is_post else norm(x))
        if config.norm_position == "both":
            y = getattr(self, f"{name}_post_norm")(y)
        y = self._drop(y, name, context)
        residual = x if config.residual_scale == 1.0 else x * config.residual_scale
        return norm(residual + y) if is_post else residual + y

    def _parallel(self, x: Tensor, context: Context) -> Tensor:
        """Attention and feed-forward beside each other: both leave the tp region by one collective.

        With one norm they read the same input, and enter it by one too.
        """
        mesh, length = self.mesh, context.length
        columns, ffn_columns = self.attention.matrices(), self.ffn.matrices()
        y = z = self.attention_norm(x)
        if self.ffn_norm is not None:
            z = self.ffn_norm(x)
            products = column_products(y, columns, mesh, length)
            products += column_products(z, ffn_columns, mesh, length)
        else:
            products = column_products(y, columns + ffn_columns, mesh, length)
        attended = self.attention(y, context, shared=products[:3])
        out = self.attention.output.finish(attended + self.ffn(z, length, shared=products[3:]))
        if self.ffn.output.has_bias:
            out = out + self.ffn.output.local("bias", self.mesh.sequence_parallel)
        return x + self._drop(out, "ffn", context)

    def _drop(self, y: Tensor, sublayer: str, context: Context) -> Tensor:
        site = f"{self.name}.{sublayer}.output"
        return context.drop(y, self.config.dropout, site, self.mesh)
