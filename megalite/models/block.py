"""A Transformer block: attention, cross-attention where there is an encoder, feed-forward."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from megalite.distributed.mesh import Mesh
from megalite.layers.products import column_products
from megalite.models.attention import Attention, CrossAttention
from megalite.models.config import ModelConfig
from megalite.models.context import Context
from megalite.models.feed_forward import FeedForward
from megalite.models.norm import Norm
from megalite.ops import Update


def run_sublayer(sublayer: Callable[..., Any], *arguments: Any) -> Any:
    """Run a sub-layer as it is."""
    return sublayer(*arguments)


class Block(nn.Module):
    """One block; what it adds to and how is the config's choice.

    Attributes:
        dropout: of what its sub-layers add.

    - pre: ``alpha x + f(norm(x))``, alpha the residual scale; post: ``norm(alpha x + f(x))``;
    - both: ``alpha x + norm(f(norm(x)))``;
    - parallel: ``x + attention(norm(x)) + feed_forward(norm(x))``.

    Attributes:
        run_sublayer: runs what ends with a sub-layer; whoever trains may put another in its place,
            such as one that makes activations again.
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
        self.config, self.mesh, self.name = config, mesh, name
        self.dropout = config.dropout
        self.run_sublayer = run_sublayer
        self.attention_norm = Norm(config, mesh)
        self.attention = Attention(config, mesh, f"{name}.attention", window)
        self.cross: CrossAttention | None = None
        if has_cross:
            self.cross_norm = Norm(config, mesh)
            self.cross = CrossAttention(config, mesh, f"{name}.cross")
        self.ffn_norm = None if config.parallel_block == "one_norm" else Norm(config, mesh)
        self.ffn = FeedForward(config, mesh)
        if config.norm_position == "both":
            self.attention_post_norm = Norm(config, mesh)
            if has_cross:
                self.cross_post_norm = Norm(config, mesh)
            self.ffn_post_norm = Norm(config, mesh)

    def forward(self, x: Tensor, context: Context, memory: Tensor | None = None) -> Tensor:
        """Map the residual stream.

        Args:
            x: [B, S, D], or [B, S/tp, D] under sequence parallelism; [B, 0, D] where the cache
                is to keep the encoder's keys and values alone.
            context: masks, tables, bias, dropout and cache of the batch.
            memory: the encoder's rows [B, Se, D], on all of tp.
        """
        if self.cross is not None and context.length == 0:
            self.cross.keep(context, memory)
            return x
        if self.config.parallel_block != "no":
            return self._parallel(x, context)
        sublayers: list[tuple[str, Callable[[Tensor], Tensor]]]
        sublayers = [("attention", lambda y: self.attention(y, context))]
        if self.cross is not None:
            cross = self.cross
            sublayers.append(("cross", lambda y: cross(y, context, memory)))
        sublayers.append(("ffn", lambda y: self.ffn(y, context)))
        run = self.run_sublayer
        if self.config.norm_position == "post":
            for name, sublayer in sublayers:
                y = run(sublayer, x)
                x = self._norm(name).of_sum(x, self._update(y, name, context))[1]
            return x
        update = None
        for name, sublayer in sublayers:  # each adds what the one before it gives
            x, y = run(self._added, x, update, name, sublayer)
            if self.config.norm_position == "both":
                y = self._norm(f"{name}_post")(y)
            update = self._update(y, name, context)
        assert update is not None
        residual = x if update.residual_scale == 1.0 else x * update.residual_scale
        return residual + self._drop(update.value, "ffn", context)

    def _added(
        self, x: Tensor, update: Update | None, name: str, sublayer: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The residual stream with what the sub-layer before adds, and what a sub-layer gives."""
        x, y = self._norm(name).of_sum(x, update)
        return x, sublayer(y)

    def _norm(self, name: str) -> Norm:
        norm = getattr(self, f"{name}_norm")
        assert isinstance(norm, Norm)
        return norm

    def _update(self, y: Tensor, name: str, context: Context) -> Update:
        """What a sub-layer adds to the residual stream."""
        drops = context.drops(y, self.dropout, self._site(name, context), self.mesh)
        return Update(y, self.config.residual_scale, drops)

    def _parallel(self, x: Tensor, context: Context) -> Tensor:
        x, out = self.run_sublayer(self._side_by_side, x, context)
        return x + self._drop(out, "ffn", context)

    def _side_by_side(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Attention and feed-forward beside each other: both leave the tp region by one collective.

        With one norm they read the same input, and enter it by one too.
        """
        mesh, length, random = self.mesh, context.length, context.dropout
        columns, ffn_columns = self.attention.matrices(random), self.ffn.matrices(random)
        x, y = self.attention_norm.of_sum(x)
        z = y
        if self.ffn_norm is not None:
            x, z = self.ffn_norm.of_sum(x)
            products = column_products(y, columns, mesh, length)
            products += column_products(z, ffn_columns, mesh, length)
        else:
            products = column_products(y, columns + ffn_columns, mesh, length)
        attended = self.attention(y, context, shared=products[:3])
        out = self.attention.output.finish(attended + self.ffn(z, context, shared=products[3:]))
        if self.ffn.output.has_bias:
            out = out + self.ffn.output.local("bias", self.mesh.sequence_parallel)
        return x, out

    def _drop(self, y: Tensor, sublayer: str, context: Context) -> Tensor:
        return context.drop(y, self.dropout, self._site(sublayer, context), self.mesh)

    def _site(self, sublayer: str, context: Context) -> str:
        """The name of a sub-layer's dropout; empty without any: one traced block serves all."""
        return "" if context.dropout is None else f"{self.name}.{sublayer}.output"
