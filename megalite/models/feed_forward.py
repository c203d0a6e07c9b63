"""The feed-forward layer, gated or not."""

from collections.abc import Sequence

from torch import Tensor, nn

from megalite.distributed.mesh import Mesh
from megalite.layers.layer import Initial
from megalite.layers.linear import ColumnParallelLinear, RowParallelLinear
from megalite.layers.products import Matrix, column_products
from megalite.models.config import ModelConfig
from megalite.models.context import Context
from megalite.ops import Dropout, activation


class FeedForward(nn.Module):
    """[B, S', D] to [B, S', D] through F."""

    def __init__(self, config: ModelConfig, mesh: Mesh) -> None:
        """Declare the weights."""
        super().__init__()
        self.mesh = mesh
        size, inner, bias = config.hidden_size, (config.ffn_size,), config.ffn_bias
        std = Initial(config.deviation("ffn", size, config.ffn_size))
        output = config.deviation("ffn_output", config.ffn_size, size, adds_to_residual=True)
        self.activation = config.activation
        self.up = ColumnParallelLinear(mesh, inner, size, std, bias)
        self.gate = ColumnParallelLinear(mesh, inner, size, std, bias) if config.gated else None
        self.output = RowParallelLinear(mesh, inner, size, Initial(output), bias)

    def matrices(self, random: Dropout | None = None) -> list[Matrix]:
        """What multiplies the input: up, and gate where there is one, without their biases.

        A block may multiply them together with another sub-layer's that reads the same input, so
        that both enter the region that is split over tp by one collective. ``random`` is the
        adapters' dropout in this pass.
        """
        return [layer.matrix(random).without_bias() for layer in self._columns()]

    def _columns(self) -> list[ColumnParallelLinear]:
        return [self.up] if self.gate is None else [self.up, self.gate]

    def forward(
        self, x: Tensor, context: Context, shared: Sequence[Tensor] | None = None
    ) -> Tensor:
        """Map the normalised residual stream.

        Args:
            x: [B, S, D], or [B, S/tp, D] under sequence parallelism.
            context: length and dropout of the batch.
            shared: ``x`` times :meth:`matrices`, each [B, S, F/tp], where the block has made them
                together with another sub-layer's; it then sums up both.

        Returns:
            The shape of ``x``; with ``shared`` this process's part of a sum, [B, S, D]{tp}, and
            without the output's bias.
        """
        if shared is not None:
            return self._inner(shared, context)
        matrices = self.matrices(context.dropout)
        products = column_products(x, matrices, self.mesh, context.length)
        return self.output.finish(self._inner(products, context))

    def _inner(self, products: Sequence[Tensor], context: Context) -> Tensor:
        gate = products[1] if len(products) > 1 else None
        biases = [layer.local_bias() for layer in self._columns()]
        inner = activation(self.activation, products[0], gate, *biases)
        return self.output.partial(inner, context.dropout)
