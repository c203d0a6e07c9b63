"""The feed-forward layer, gated or not."""

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn
from torch.nn import functional

from megalite.models.config import ModelConfig
from megalite.parallel.layers import ColumnParallelLinear, Initial, RowParallelLinear
from megalite.parallel.mesh import Mesh
from megalite.parallel.products import Matrix

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

    def matrices(self) -> list[Matrix]:
        """What multiplies the input: up, and gate where there is one."""
        layers = [self.up] if self.gate is None else [self.up, self.gate]
        return [layer.matrix() for layer in layers]

    def forward(self, products: Sequence[Tensor]) -> Tensor:
        """Map the input times :meth:`matrices`, each [B, S, F/tp]; the output's bias is not in."""
        up, *gate = products
        inner = self.activation(gate[0]) * up if gate else self.activation(up)
        return self.output.partial(inner)
