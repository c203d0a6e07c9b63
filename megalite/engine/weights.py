"""A published model's weights into a model over processes, each of them what it holds."""

from pathlib import Path

import torch

from megalite.engine.model import Model
from megalite.layers.shards import local_box, local_part
from megalite.models.hugging_face import fitted, our_tensors, read_config


@torch.no_grad()
def load_weights(model: Model, path: Path) -> None:
    """Load a Hugging Face folder into a model, each process what it holds.

    Raises:
        CheckpointError: the folder is of another model or damaged.
    """
    config, family = read_config(path)
    parameters = dict(model.named_parameters())
    for name, piece in our_tensors(path, config, family):
        if name not in parameters:
            continue
        parameter = parameters[name]
        shape, offset = local_box(parameter)
        whole = fitted(name, piece, parameter.shape, path)
        part = whole[tuple(slice(at, at + n) for at, n in zip(offset, shape, strict=True))]
        local_part(parameter).copy_(part)
    model.copy_duplicates()
