"""Checkpoints of adapters alone: the base that they belong to, and both together."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from megalite.config.explain import explain
from megalite.distributed.sums import sum_count
from megalite.engine.lora import (
    ADAPTER,
    LoRAConfig,
    add_product,
    check_lora,
    learns,
    quantised_of,
)
from megalite.errors import CheckpointError, ConfigError
from megalite.layers.shards import Share
from megalite.training.checkpoint.load import load
from megalite.training.checkpoint.manifest import Facts
from megalite.training.checkpoint.reader import CheckpointReader
from megalite.training.folder.fingerprint import weights_source
from megalite.training.learner import Learner


def name_of(facts: Facts) -> str:
    """The name, in a checkpoint's files, of the model that another run starts from."""
    return "model" if "model" in facts["learners"] else "actor"


@dataclass(frozen=True)
class StoredAdapters:
    """The adapters of a checkpoint.

    Attributes:
        path: of the checkpoint.
        name: of the model in its files.
        lora: what they are.
        base: the stored model that they were trained on.
        fingerprint: of the base.
    """

    path: Path
    name: str
    lora: LoRAConfig
    base: str
    fingerprint: str

    def check_base(self) -> None:
        """Refuse a base that isn't there, or isn't what it was.

        Raises:
            CheckpointError: it names the base and says what to do.
        """
        found = weights_source(self.base)
        if found is None:
            raise CheckpointError(
                f"{self.path}: holds adapters alone, and their base {self.base} is not there: put "
                "it back"
            )
        if found["fingerprint"] != self.fingerprint:
            raise CheckpointError(
                f"{self.path}: holds adapters alone, and their base {self.base} has another "
                "content than when they were trained: put back what it was"
            )

    def layers(self) -> dict[str, dict[str, torch.Size]]:
        """The shapes of the factors of each adapter, by its layer's name."""
        found: dict[str, dict[str, torch.Size]] = {}
        saved = CheckpointReader(self.path).read_metadata().state_dict_metadata
        for name, entry in saved.items():
            layer, is_factor, factor = name.removeprefix(f"{self.name}.").partition(ADAPTER)
            if name.startswith(f"{self.name}.") and is_factor:
                found.setdefault(layer, {})[factor] = entry.size  # type: ignore[union-attr]
        return found

    def factors(self, layer: str, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
        """The factors of a layer's adapter, whole and in fp32."""
        factors = {factor: torch.empty(shape) for factor, shape in shapes.items()}
        prefix = f"{self.name}.{layer}{ADAPTER}"
        load(self.path, {prefix + factor: tensor for factor, tensor in factors.items()})
        return factors

    def add_to(self, parameters: Mapping[str, Tensor | Share]) -> None:
        """Make a base's parameters those of the adapted model, in place.

        Args:
            parameters: by the whole model's names; each process has what it holds of them.
        """
        for layer, shapes in self.layers().items():
            if f"{layer}.weight" in parameters:
                factors = self.factors(layer, shapes)
                add_product(parameters[f"{layer}.weight"], factors, self.lora.scale)
        others = {n: p for n, p in parameters.items() if not isinstance(p, Share)}
        whole = {f"{self.name}.{n}": p for n, p in others.items() if learns(n)}
        load(self.path, whole)


def adapters_of(facts: Facts, path: Path) -> StoredAdapters | None:
    """The adapters of a checkpoint whose base is as it was; None where it holds whole weights.

    Raises:
        CheckpointError: they can't be read, or the base is gone or changed.
    """
    name = name_of(facts)
    said: dict[str, Any] | None = facts.get("lora", {}).get(name)
    if said is None:
        return None
    try:
        lora = LoRAConfig(**said["config"] | {"layers": tuple(said["config"]["layers"])})
    except ValidationError as error:
        reason = explain(error, LoRAConfig, "lora", set())
        raise CheckpointError(f"{path}: its adapters can't be read: {reason}") from None
    except ConfigError as error:
        raise CheckpointError(f"{path}: its adapters can't be read: {error}") from None
    base = said["base"]
    found = StoredAdapters(path, name, lora, base["path"], base["fingerprint"])
    found.check_base()
    return found


def learned_of(learner: Learner, config: Any) -> str:
    """How many parameters of an adapted model learn, in words. Comm: two counts over pp."""
    model, mesh = learner.model, learner.mesh
    owned = model.owned_names()
    sizes = [(p.numel(), p.requires_grad) for n, p in model.named_parameters() if n in owned]
    held = quantised_of(model.parts)
    sizes += [(matrix.shape.numel(), False) for matrix in held.values()]
    learned, whole = (
        int(sum_count(sum(n for n, learns in sizes if learns in kept), mesh.pp, mesh.device))
        for kept in ([True], [True, False])
    )
    form = f", whose matrices are held as {model.lora.base_format}" if held else ""
    said = f"{learner.name}: {learned:,} of {whole:,} parameters learn: adapters of its base{form}"
    stays = "; tokens that checkpoint.grow_vocabulary adds stay the mean of the others"
    return said + stays if config.checkpoint.grow_vocabulary else said


def check_adapters(config: Any) -> None:
    """Refuse adapters that don't fit a stage's config: its start, model, layout or training.

    Raises:
        ConfigError: it names the key.
    """
    lora = config.lora
    check_lora(lora, config.model, config.parallel)
    if lora.rank and not config.checkpoint.start:
        raise ConfigError(
            f"--lora.rank {lora.rank}: adapters belong to a trained model: name it by "
            "--checkpoint.start"
        )
    if lora.rank and config.train.embedding_gradient != 1.0:
        raise ConfigError(
            f"--train.embedding_gradient {config.train.embedding_gradient}: adapters leave the "
            "embedding as it is: leave it out"
        )
    if lora.rank and config.train.average:
        raise ConfigError(
            f"--train.average {config.train.average:g}: the mean of two factors is not that "
            "of their product: leave it out"
        )
    if lora.dropout and not config.drops:
        raise ConfigError(
            f"--lora.dropout {lora.dropout}: {config.stage} learns without dropout: leave it out"
        )
    if lora.dropout and config.train.compile:
        raise ConfigError(
            "--train.compile: can't be with lora.dropout: each step's seed would compile anew: "
            "leave one of them out"
        )
