"""Normalisation of the residual stream."""

from torch import Tensor
from torch.nn import functional

from megalite.distributed.mesh import Mesh
from megalite.layers.layer import Initial, Layer
from megalite.models.config import ModelConfig
from megalite.ops import rms_norm


class Norm(Layer):
    """RMSNorm or LayerNorm of [B, S', D], on the rows between matrices; fp32 inside."""

    def __init__(self, config: ModelConfig, mesh: Mesh, width: int = 0) -> None:
        """Declare the scale, and the bias where there is one; ``width`` 0 is D."""
        super().__init__(mesh)
        width = width or config.hidden_size
        self.eps = config.norm_eps
        self.is_rms = config.norm == "rms_norm"
        self.has_bias = config.norm == "layer_norm" and config.norm_bias
        self.add("weight", (width,), Initial(value=1.0))
        if self.has_bias:
            self.add("bias", (width,), Initial())

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension.

        Comm: under sequence parallelism all-reduce of [D] over tp, backward only.
        """
        partial = self.mesh.sequence_parallel
        weight = self.local("weight", partial)
        if self.is_rms:
            return rms_norm(x, weight, self.eps)
        bias = self.local("bias", partial) if self.has_bias else None
        return functional.layer_norm(x, weight.shape, weight, bias, self.eps)
