"""Normalisation of the residual stream."""

from torch import Tensor

from megalite.distributed.mesh import Mesh
from megalite.layers.layer import Initial, Layer
from megalite.models.config import ModelConfig
from megalite.ops import NormOptions, Update, add_norm


class Norm(Layer):
    """RMSNorm or LayerNorm of [B, S', D], on the rows between matrices; fp32 inside."""

    def __init__(
        self, config: ModelConfig, mesh: Mesh, width: int = 0, of_heads: bool = False
    ) -> None:
        """Declare the scale, and the bias where there is one.

        Args:
            config: of the model.
            mesh: the mesh.
            width: of what is normalised; 0 is D.
            of_heads: it normalises each of the heads that a tp process has, [B, S, N/tp, width].
        """
        super().__init__(mesh)
        width = width or config.hidden_size
        centred, offset = config.norm == "layer_norm", float(config.norm_plus_one)
        self.options = NormOptions(centred, config.norm_eps, offset)
        self.has_bias, self.of_heads = centred and config.norm_bias, of_heads
        self.add("weight", (width,), Initial(value=1.0 - offset))
        if self.has_bias:
            self.add("bias", (width,), Initial())

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension.

        Comm: all-reduce of [width] over tp, backward only, under sequence parallelism and of heads.
        """
        return self.of_sum(x)[1]

    def of_sum(self, x: Tensor, update: Update | None = None) -> tuple[Tensor, Tensor]:
        """Add to the residual stream, and normalise the sum: both, in one pass.

        Comm: see :meth:`forward`.
        """
        partial = self.of_heads or self.mesh.sequence_parallel
        bias = self.local("bias", partial) if self.has_bias else None
        return add_norm(x, update, self.local("weight", partial), bias, self.options)
