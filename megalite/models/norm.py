"""Normalisation of the residual stream."""

from torch import Tensor
from torch.nn import functional

from megalite.distributed.mesh import Mesh
from megalite.layers.layer import Initial, Layer
from megalite.models.config import ModelConfig
from megalite.ops import rms_norm
from megalite.ops.precision import wide


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
        self.eps = config.norm_eps
        self.is_rms = config.norm == "rms_norm"
        self.has_bias = config.norm == "layer_norm" and config.norm_bias
        self.plus_one, self.of_heads = config.norm_plus_one, of_heads
        self.add("weight", (width,), Initial(value=0.0 if self.plus_one else 1.0))
        if self.has_bias:
            self.add("bias", (width,), Initial())

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension.

        Comm: all-reduce of [width] over tp, backward only, under sequence parallelism and of heads.
        """
        partial = self.of_heads or self.mesh.sequence_parallel
        weight = self.local("weight", partial)
        if self.plus_one:
            weight = wide(weight) + 1.0
        if self.is_rms:
            return rms_norm(x, weight, self.eps)
        bias = self.local("bias", partial) if self.has_bias else None
        return functional.layer_norm(x, weight.shape, weight, bias, self.eps)
