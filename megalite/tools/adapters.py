"""Adapters in PEFT's format: made of a checkpoint of ours, or a checkpoint made of them."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megalite.distributed.launch import Launch
from megalite.engine.lora import ADAPTER, LoRAConfig, adaptable
from megalite.engine.weights import config_of, parameter_shapes
from megalite.errors import CheckpointError, ConfigError
from megalite.models.config import ModelConfig
from megalite.models.families import FAMILIES
from megalite.models.hub import folder_of, pinned
from megalite.models.hugging_face import family_of, is_hugging_face, read_config, read_their_config
from megalite.models.peft import Factors, PeftAdapter, our_factors, write_adapter
from megalite.models.tensor_files import dtypes_of
from megalite.stages.adapters import StoredAdapters, adapters_of
from megalite.training.adapted import named_base
from megalite.training.checkpoint.load import find_checkpoint, load
from megalite.training.checkpoint.manager import CheckpointManager
from megalite.training.checkpoint.manifest import verify
from megalite.training.folder.fingerprint import weights_source


def export_adapter(source: Path, target: Path, family: str) -> str:
    """Write the adapters of a checkpoint as PEFT has them; give what is to be said.

    Args:
        source: a checkpoint of adapters, or the folder of its run.
        target: the folder.
        family: of the model; empty: the one that its base came from.

    Raises:
        CheckpointError: there are none, or their base is gone or changed.
    """
    path = find_checkpoint(source)
    facts = verify(path)
    adapters = adapters_of(facts, path)
    if adapters is None:
        raise CheckpointError(f"--adapter: {path} holds whole weights: leave it out")
    model = config_of(facts, path)
    published = facts.get("published", {})
    kind = next((f for f in FAMILIES.values() if f.knows(published)), None)
    kind = family_of(model, family or (kind.name if kind else ""))
    is_theirs = is_hugging_face(folder_of(adapters.base))
    said: dict[str, Any] = {"base_model_name_or_path": None, "task_type": _task(model)}
    if is_theirs:
        name, _, revision = adapters.base.partition("@")
        said |= {"base_model_name_or_path": name, "revision": revision or None}
    head = _head(adapters, model)
    if head:
        said |= {"tensors": head, "modules_to_save": ["score"]}
    write_adapter(target, (model, kind), _factors(adapters), adapters.lora.scale, said)
    if is_theirs:
        return ""
    return (
        f"its base {adapters.base} is a checkpoint of ours, and stays unnamed in "
        "adapter_config.json: convert it too, and load the adapter onto it"
    )


def _task(model: ModelConfig) -> str:
    if model.head == "value":
        return "SEQ_CLS"
    return "SEQ_2_SEQ_LM" if model.is_encoder_decoder else "CAUSAL_LM"


def _factors(adapters: StoredAdapters) -> dict[str, Factors]:
    """The factors of all layers, each a matrix."""
    found = {}
    for layer, shapes in adapters.layers().items():
        factors = adapters.factors(layer, shapes)
        found[layer] = factors["down"].flatten(1), factors["up"].flatten(0, -2)
    return found


def _head(adapters: StoredAdapters, model: ModelConfig) -> dict[str, Tensor]:
    if model.head != "value":
        return {}
    if model.head_bias:
        raise CheckpointError(
            f"{adapters.path}: its score has a bias, which PEFT's models have not"
        )
    weight = torch.empty(1, model.hidden_size)
    load(adapters.path, {f"{adapters.name}.head.value.weight": weight})
    return {"score.weight": weight}


def import_adapter(source: Path, target: Path, base: str) -> tuple[str, str]:
    """Make a checkpoint of an adapter of PEFT's.

    Args:
        source: folder of the adapter.
        target: the checkpoint's run.
        base: the model that it belongs to; empty: the one that it names.

    Returns:
        The base's name, and what is to be said.

    Raises:
        CheckpointError: the adapter, or its base, is one that no model here can be or have.
        ConfigError: no base is known.
    """
    adapter = PeftAdapter.read(source)
    named = base or adapter.base
    if not named:
        raise ConfigError(f"--base: {source} names no model that it belongs to: name it")
    named, fetched = pinned(Launch(), "base", named, "model")
    folder = folder_of(named)
    found = weights_source(named)
    if found is None or not is_hugging_face(folder):
        raise CheckpointError(
            f"{source}: belongs to {named}, which is no Hugging Face folder here: name it by --base"
        )
    model, family = read_config(folder)
    factors, head = our_factors(adapter, model, family)
    if head:
        model = model.model_copy(update={"head": "value", "head_bias": False})
    rank = next(iter(factors.values()))[0].shape[0]
    lora = LoRAConfig(rank=rank, layers=_chosen(factors))
    facts = {
        "step": 0,
        "consumed_samples": 0,
        "extra": {},
        "learners": {"model": {}},
        "model": model.model_dump(),
        **dtypes_of(folder),
        "published": read_their_config(folder),
        "lora": {"model": {"config": lora.model_dump(mode="json"), "base": named_base(found)}},
    }
    manager = CheckpointManager(target / "checkpoints", keep=2, asynchronous=False, say=print)
    manager.save(0, _tensors(factors, model) | {f"model.{n}": t for n, t in head.items()}, facts)
    manager.wait()
    return named, fetched


def _chosen(factors: dict[str, Factors]) -> tuple[Any, ...]:
    return tuple(sorted({name for name in map(adaptable, factors) if name is not None}))


def _tensors(factors: dict[str, Factors], model: ModelConfig) -> dict[str, Tensor]:
    """Factors in the shapes of our parameters; those that a layer alone of its kind lacks are 0."""
    rank, chosen = next(iter(factors.values()))[0].shape[0], _chosen(factors)
    found = {}
    for name, shape in parameter_shapes(model).items():
        layer = name.removesuffix(".weight")
        if adaptable(layer) not in chosen or layer == name:
            continue
        outs = 1 if layer.endswith(".output") else len(shape) - 1
        for factor, own in (("down", (rank, *shape[outs:])), ("up", (*shape[:outs], rank))):
            given = factors[layer][factor == "up"] if layer in factors else torch.zeros(own)
            if given.numel() != torch.Size(own).numel():
                raise CheckpointError(
                    f"the adapter of {layer} is {list(given.shape)}, and its base's matrix is "
                    f"{list(shape)}: it belongs to another model"
                )
            found[f"model.{layer}{ADAPTER}{factor}"] = given.reshape(own).contiguous()
    return found
