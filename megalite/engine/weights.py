"""A published model's weights into a model over processes, each of them what it holds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from megalite.config.explain import explain
from megalite.engine.model import Model
from megalite.errors import CheckpointError, ConfigError
from megalite.layers.shards import local_box, local_part
from megalite.models.config import ModelConfig
from megalite.models.families.table import decisive
from megalite.models.hugging_face import fitted, our_tensors, read_config

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


@torch.no_grad()
def load_weights(model: Model, path: Path) -> None:
    """Load a Hugging Face folder into a model, each process what it holds.

    Raises:
        CheckpointError: the folder is of another model or damaged.
    """
    config, family = read_config(path)
    check_same_model(model.config, config, f"{path}/config.json")
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
