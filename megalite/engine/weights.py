"""A published model's weights into a model over processes, each of them what it holds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from megalite.config.explain import explain
from megalite.distributed.mesh import Mesh
from megalite.engine.model import Model
from megalite.errors import CheckpointError, ConfigError
from megalite.layers.shards import Share, local_box, local_part
from megalite.models.config import ModelConfig
from megalite.models.families.table import decisive
from megalite.models.hugging_face import fitted, our_tensors, read_config
from megalite.models.transformer import Transformer

EMBEDDINGS = ("embedding.weight", "encoder.embedding.weight")
VOCABULARY = (*EMBEDDINGS, "head.weight", "head.bias")  # tables with a row a token
HEAD_KEYS = {
    "head",
    "head_bias",
    "tie_embeddings",
    "normalised_head",
    "logit_scale",
    "logit_cap",
}


def config_of(facts: Mapping[str, Any], where: Path | str) -> ModelConfig:
    """The model that a checkpoint's facts describe.

    Raises:
        CheckpointError: a key or value of it is not known.
    """
    try:
        return ModelConfig(**facts["model"])
    except ValidationError as error:
        reason = explain(error, ModelConfig, "model", set())
    except ConfigError as error:
        reason = str(error)
    raise CheckpointError(
        f"{where}: its model can't be read: {reason}; did another version write it?"
    )


def with_vocabulary(stored: ModelConfig, wanted: ModelConfig, grows: bool) -> ModelConfig:
    """A stored model with the rows of its vocabulary that are added when it is loaded.

    Args:
        stored: as the weights were trained.
        wanted: the run's.
        grows: whether rows may be added; none is ever taken away.
    """
    more = grows and wanted.vocab_size > stored.vocab_size
    return stored.model_copy(update={"vocab_size": wanted.vocab_size}) if more else stored


def grown(name: str, table: Tensor, rows: int) -> Tensor:
    """A table of the vocabulary with further rows, each the mean of those that are there.

    Args:
        name: of the parameter.
        table: [V] or [V, E]; of another parameter it is given back.
        rows: that it is to have, at least V.

    Source: Taori et al. 2023, tatsu-lab/stanford_alpaca, train.py.
    """
    if name not in VOCABULARY or rows == table.shape[0]:
        return table
    mean = table.float().mean(0, keepdim=True).to(table.dtype)
    return torch.cat([table, mean.expand(rows - table.shape[0], *table.shape[1:])])


def check_same_model(wanted: ModelConfig, stored: ModelConfig, where: str) -> None:
    """Refuse stored weights for a model that would compute something else with them.

    The head is left out: a reward model starts from a language model.

    Args:
        wanted: the run's.
        stored: what the weights were trained as.
        where: the stored config stands.

    Raises:
        CheckpointError: it names each key that differs, both values, and what to do.
    """
    ours, theirs = decisive(wanted), decisive(stored)
    if wanted.head != stored.head:
        ours, theirs = (
            {key: value for key, value in values.items() if key not in HEAD_KEYS}
            for values in (ours, theirs)
        )
    differ = sorted(k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k))
    if differ:  # what follows from another key is not said beside it
        differ = [k for k in differ if getattr(wanted, k) != getattr(stored, k)] or differ
        said = ", ".join(f"{k} {ours.get(k)} (there {theirs.get(k)})" for k in differ)
        raise CheckpointError(
            f"--model: {said}: must be as in {where}, or its weights mean something else: take "
            "these keys out of the config, or give them its values"
        )


def parameter_shapes(config: ModelConfig) -> dict[str, torch.Size]:
    """The shape of every parameter by name; nothing is allocated."""
    model = Transformer(config, Mesh.single())
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def load_weights(model: Model, path: Path, grows: bool = False) -> None:
    """Load a Hugging Face folder into a model, each process what it holds.

    Args:
        model: gets the weights.
        path: the folder.
        grows: whether the vocabulary may get rows; see :func:`grown`.

    Raises:
        CheckpointError: the folder is of another model or damaged.
    """
    fill_all(dict(model.named_parameters()), model.config, path, grows)
    model.copy_duplicates()


@torch.no_grad()
def fill_all(
    parameters: Mapping[str, Tensor | Share], wanted: ModelConfig, path: Path, grows: bool = False
) -> None:
    """Fill parameters from a Hugging Face folder, each process what it holds of them.

    Args:
        parameters: by the whole model's names.
        wanted: config of the model.
        path: the folder.
        grows: whether the vocabulary may get rows; see :func:`grown`.

    Raises:
        CheckpointError: the folder is of another model or damaged.
    """
    config, family = read_config(path)
    there = with_vocabulary(config, wanted, grows)
    check_same_model(wanted, there, f"{path}/config.json")
    for name, piece in our_tensors(path, config, family):
        if name not in parameters:
            continue
        parameter = parameters[name]
        rows = config.vocab_size if name in VOCABULARY else parameter.shape[0]
        piece = fitted(name, piece, torch.Size((rows, *parameter.shape[1:])), path)
        fill(parameter, grown(name, piece, parameter.shape[0]))


@torch.no_grad()
def fill(parameter: Tensor | Share, whole: Tensor) -> None:
    """Give a parameter what this process holds of a whole tensor of its shape."""
    shape, offset = local_box(parameter)
    box = tuple(slice(at, at + n) for at, n in zip(offset, shape, strict=True))
    local_part(parameter).copy_(whole[box])
