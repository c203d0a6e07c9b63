"""Adapters in PEFT's format: made of a checkpoint of ours, or a checkpoint made of them."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megalite.distributed.launch import Launch
from megalite.engine.lora import (
    ADAPTER,
    LoRAConfig,
    adaptable,
    as_matrix,
    is_linear,
    num_outs,
    round_base,
)
from megalite.engine.weights import config_of, parameter_shapes
from megalite.errors import CheckpointError, ConfigError
from megalite.models.config import ModelConfig
from megalite.models.families import FAMILIES
from megalite.models.hub import folder_of, pinned
from megalite.models.hugging_face import family_of, is_hugging_face, read_config, read_their_config
from megalite.models.peft import Factors, PeftAdapter, our_factors, write_adapter
from megalite.models.tensor_files import dtypes_of
from megalite.ops.quantised import Format
from megalite.stages.adapters import StoredAdapters, adapters_of
from megalite.stages.start import fill_from
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
    factors = _factors(adapters)
    if adapters.lora.dora:
        factors = _with_sizes(adapters, model, factors)
    write_adapter(target, (model, kind), factors, adapters.lora.scale, said)
    form = adapters.lora.base_format
    held = f"its base's matrices were held as {form} while it learned" if form != "compute" else ""
    if is_theirs:
        return held
    return (f"{held}; " if held else "") + (
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
        factors, change = adapters.factors(layer, shapes), None
        if "change" in factors:
            change = factors["change"].flatten()
        found[layer] = Factors(factors["down"].flatten(1), factors["up"].flatten(0, -2), change)
    return found


def _with_sizes(
    adapters: StoredAdapters, model: ModelConfig, factors: dict[str, Factors]
) -> dict[str, Factors]:
    """DoRA's factors with the sizes of rows in place of their relative changes.

    A layer without an adapter has one of rank 0: beside others it may be in one matrix of theirs.
    """
    found = {}
    form = adapters.lora.form
    for layer, size in _base_sizes(adapters.base, model, form).items():
        one = factors.get(layer)
        if one is None:
            found[layer] = Factors(torch.zeros(0, 0), size.new_zeros(len(size), 0), size)
        else:
            assert one.sizes is not None
            found[layer] = Factors(one.down, one.up, (1 + one.sizes) * size)
    return found


def _base_sizes(base: str, model: ModelConfig, form: Format | None) -> dict[str, Tensor]:
    """The sizes of the rows of the matrices of a base's linear layers, by the layers' names."""
    shapes = {n: s for n, s in parameter_shapes(model).items() if is_linear(n)}
    matrices = {name: torch.empty(shape) for name, shape in shapes.items()}
    fill_from(matrices, model, base, grows=True)
    if form is not None:
        round_base(matrices, form)
    found = {}
    for name in shapes:
        rows = as_matrix(name, matrices.pop(name))
        found[name.removesuffix(".weight")] = rows.norm(dim=1)
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
    is_dora = any(one.sizes is not None for one in factors.values())
    if is_dora:
        factors = _with_changes(factors, _base_sizes(named, model, None))
    lora = LoRAConfig(rank=rank, layers=_chosen(factors), dora=is_dora)
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


def _with_changes(factors: dict[str, Factors], base: dict[str, Tensor]) -> dict[str, Factors]:
    """DoRA's factors with relative changes of the base's sizes in place of sizes."""
    found = {}
    for layer, one in factors.items():
        own = base[layer]
        sizes = own if one.sizes is None else one.sizes
        if sizes.shape == own.shape:  # others are refused with the other factors
            sizes = torch.where(own > 0, sizes / own - 1, 0.0)  # zeros have no direction
        found[layer] = Factors(one.down, one.up, sizes)
    return found


def _chosen(factors: dict[str, Factors]) -> tuple[Any, ...]:
    return tuple(sorted({name for name in map(adaptable, factors) if name is not None}))


def _tensors(factors: dict[str, Factors], model: ModelConfig) -> dict[str, Tensor]:
    """Factors in the shapes of our parameters; those that a layer alone of its kind lacks are 0."""
    one, chosen = next(iter(factors.values())), _chosen(factors)
    rank, is_dora = one.down.shape[0], one.sizes is not None
    found = {}
    for name, shape in parameter_shapes(model).items():
        layer = name.removesuffix(".weight")
        if adaptable(layer) not in chosen or layer == name:
            continue
        outs = num_outs(name, len(shape))
        sizes = {"down": (rank, *shape[outs:]), "up": (*shape[:outs], rank)}
        if is_dora:
            sizes["sizes"] = shape[:outs]
        for factor, own in sizes.items():
            given = getattr(factors[layer], factor) if layer in factors else torch.zeros(own)
            if given.numel() != torch.Size(own).numel():
                raise CheckpointError(
                    f"the adapter of {layer} is {list(given.shape)}, and its base's matrix is "
                    f"{list(shape)}: it belongs to another model"
                )
            ours = "change" if factor == "sizes" else factor
            found[f"model.{layer}{ADAPTER}{ours}"] = given.reshape(own).contiguous()
    return found
