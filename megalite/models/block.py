"""A Transformer block: attention, cross-attention where there is an encoder, feed-forward."""

import math
from collections.abc import Callable

from torch import Tensor, nn

from megalite.models.attention import Attention
from megalite.models.config import ModelConfig
from megalite.models.feed_forward import FeedForward
from megalite.models.norm import Norm
from megalite.models.stream import Stream
from megalite.parallel.layers import enter
from megalite.parallel.mesh import Mesh


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
        self.has_cross = has_cross
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
        x = self._add(x, "attention", lambda y: self.attention.to_itself(y, stream), stream)
        if self.has_cross:
            x = self._add(x, "cross", lambda y: self.cross.to_encoder(y, memory, stream), stream)
        return self._add(x, "ffn", self.ffn, stream)

    def _add(
        self, x: Tensor, name: str, sublayer: Callable[[Tensor], Tensor], stream: Stream
    ) -> Tensor:
        """Add one sub-layer to the residual; ``sublayer`` maps [B, S, D] to [B, S, D]{tp}."""
        config = self.config
        norm, output = getattr(self, f"{name}_norm"), getattr(self, name).output
        is_pre = config.norm_position == "pre"
        y = enter(norm(x) if is_pre else x, self.mesh, stream.length)
        y = self._drop(output.finish(sublayer(y)), name, stream)
        residual = x if config.residual_scale == 1.0 else x * config.residual_scale
        return residual + y if is_pre else norm(residual + y)

    def _parallel(self, x: Tensor, stream: Stream) -> Tensor:
        y = enter(self.attention_norm(x), self.mesh, stream.length)
        z = y
        if self.config.parallel_block == "two_norms":
            z = enter(self.ffn_norm(x), self.mesh, stream.length)
        partial = self.attention.to_itself(y, stream) + self.ffn(z)
        out = self.attention.output.finish(partial)
        if self.ffn.output.has_bias:
            out = out + self.ffn.output.local("bias", self.mesh.sequence_parallel)
        return x + self._drop(out, "ffn", stream)

    def _drop(self, y: Tensor, sublayer: str, stream: Stream) -> Tensor:
        site = f"{self.name}.{sublayer}.output"
        return stream.drop(y, self.config.dropout, site, self.mesh)
