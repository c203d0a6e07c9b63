"""How large a model is, from its config alone."""

from megalite.distributed.mesh import Mesh
from megalite.models.config import ModelConfig
from megalite.models.transformer import Transformer


def num_parameters(config: ModelConfig) -> int:
    """Parameters of a model, counted in its first two blocks; nothing is allocated."""
    encoder = config.num_encoder_layers

    def count(layers: int, encoder_layers: int) -> int:
        sizes = {"num_layers": layers, "num_encoder_layers": encoder_layers}
        model = Transformer(config.model_copy(update=sizes), Mesh.single())
        return sum(parameter.numel() for parameter in model.parameters())

    first = min(encoder, 1)
    least = count(1, first)
    total = least + (config.num_layers - 1) * (count(2, first) - least)
    return total + ((encoder - 1) * (count(1, 2) - least) if encoder else 0)
