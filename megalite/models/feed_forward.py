"""The feed-forward layer, gated or not."""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import functional

from megalite.models.config import ModelConfig
from megalite.parallel.layers import ColumnParallelLinear, Initial, RowParallelLinear
from megalite.parallel.mesh import Mesh

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "silu": functional.silu,
}


class FeedForward(nn.Module):
    """[B, S, D] to [B, S, D]{tp} through F."""

    def __init__(self, config: ModelConfig, mesh: Mesh, output_std: float) -> None:
        """Declare the weights; ``output_std`` is of the last one's initial values."""
        super().__init__()
        size, inner, bias = config.hidden_size, (config.ffn_size,), config.ffn_bias
        std = Initial(config.init_std)
        self.activation = ACTIVATIONS[config.activation]
        self.up = ColumnParallelLinear(mesh, inner, size, std, bias)
        self.gate = ColumnParallelLinear(mesh, inner, size, std, bias) if config.gated else None
        self.output = RowParallelLinear(mesh, inner, size, Initial(output_std), bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map x, the same on all of tp; the output's bias is not yet in."""
        if self.gate is None:
            inner = self.activation(self.up(x))
        else:
            inner = self.activation(self.gate(x)) * self.up(x)
        return self.output.partial(inner)
