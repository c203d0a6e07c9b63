"""Adapters in the format of Hugging Face's PEFT: adapter_config.json, adapter_model.safetensors.

Where their model has one matrix for several of ours (query, key and value), one adapter of theirs
is beside several of ours: on the way in each gets the whole of A and its rows of B; on the way out
the factors A stand one below the other, and B has a block for each. DoRA's sizes are those of rows
in their format, so they are cut and joined as rows are.

Source: github.com/huggingface/peft, src/peft/tuners/lora.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from megalite.errors import CheckpointError
from megalite.models.config import ModelConfig
from megalite.models.families.table import Entry, Family
from megalite.models.tensor_files import load_tensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PICKLED = "adapter_model.bin"  # of PEFT before 0.7
PREFIX, WEIGHT = "base_model.model.", ".weight"
MERGE = "merge it with PEFT (merge_and_unload), and convert the merged model"
DOWN, UP = ".lora_A.weight", ".lora_B.weight"
SIZES = ".lora_magnitude_vector"
# What is read, and what says how an adapter was made or which modules have one, as the names of its
# tensors do.
KNOWN = (
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "megatron_core",
    "modules_to_save",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "target_modules",
    "task_type",
    "use_dora",
    "use_rslora",
)
INITIAL = (True, False, "gaussian", "orthogonal", "eva")  # that leave the base as it is


class Factors(NamedTuple):
    """An adapter beside a matrix [O, D].

    Attributes:
        down: [r, D].
        up: [O, r].
        sizes: [O], of the rows of the sum with DoRA; None without.
    """

    down: Tensor
    up: Tensor
    sizes: Tensor | None = None


def is_adapter(path: Path) -> bool:
    """Whether a folder holds an adapter in PEFT's format."""
    return (path / CONFIG).is_file()


@dataclass(frozen=True)
class PeftAdapter:
    """An adapter as its folder has it.

    Attributes:
        path: of the folder.
        config: its adapter_config.json.
    """

    path: Path
    config: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> "PeftAdapter":
        """Read what an adapter is.

        Raises:
            CheckpointError: it can't be read, or is one that no model here can have; it names the
                key.
        """
        where = path / CONFIG
        try:
            config = json.loads(where.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{where}: can't be read: {error}") from None
        if not isinstance(config, dict):
            raise CheckpointError(f"{where}: must be a JSON object")
        for key, value in config.items():
            if key not in KNOWN and value:
                raise CheckpointError(
                    f"{where}: {key} {json.dumps(value)}: an adapter here has nothing of the kind: "
                    f"{MERGE}"
                )
        for key, right in (("peft_type", ("LORA",)), ("bias", ("none", None))):
            if config.get(key) not in right:
                raise CheckpointError(
                    f"{where}: {key} {json.dumps(config.get(key))}: must be "
                    f"{json.dumps(right[0])}: {MERGE}"
                )
        initial = config.get("init_lora_weights", True)
        if initial not in INITIAL:
            raise CheckpointError(
                f"{where}: init_lora_weights {json.dumps(initial)}: changes the base's weights, "
                "which the files don't hold: save it as LoRA with PEFT's "
                "path_initial_model_for_weight_conversion"
            )
        return cls(path, config)

    @property
    def base(self) -> str:
        """The model that it belongs to, with its commit where that is said; empty: not said."""
        name, revision = (
            self.config.get("base_model_name_or_path") or "",
            self.config.get("revision"),
        )
        return f"{name}@{revision}" if name and revision and not Path(name).exists() else name

    def scale_of(self, module: str, rank: int) -> float:
        """What the product of a module's factors is multiplied by."""
        patterns = self.config.get("alpha_pattern") or {}
        key = next((key for key in patterns if re.match(rf"(.*\.)?({key})$", module)), None)
        alpha = float(self.config.get("lora_alpha", 8) if key is None else patterns[key])
        return alpha / (rank**0.5 if self.config.get("use_rslora") else rank)

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by their names in the model.

        Raises:
            CheckpointError: the file is missing or damaged.
        """
        file, pickled = self.path / WEIGHTS, self.path / PICKLED
        if not file.is_file() and not pickled.is_file():
            raise CheckpointError(f"{file}: is missing, and {PICKLED} too: take a whole copy")
        try:
            found = load_file(file) if file.is_file() else load_tensors(pickled)
        except CheckpointError:
            raise
        except Exception as error:  # of several libraries, all meaning a damaged file
            raise CheckpointError(f"{file}: can't be read: {error}") from None
        return {name.removeprefix(PREFIX): tensor.float() for name, tensor in found.items()}


def our_factors(
    adapter: PeftAdapter, config: ModelConfig, family: Family
) -> tuple[dict[str, Factors], dict[str, Tensor]]:
    """An adapter's factors beside our layers, and what it has of a scalar head.

    Their scales are multiplied into ``up``, and all have the largest rank: smaller ones are filled
    up with 0.

    Raises:
        CheckpointError: it has tensors for something else; it names them.
    """
    tensors = adapter.tensors()
    whole = {name: tensors.pop(name) for name in list(tensors) if name == "score.weight"}
    found: dict[str, Factors] = {}
    ranks = [tensor.shape[0] for name, tensor in tensors.items() if name.endswith(DOWN)]
    for entry in family.entries(config):
        module = entry.theirs.removesuffix(WEIGHT)
        if module + DOWN not in tensors or module + UP not in tensors:
            continue
        down, up = tensors.pop(module + DOWN), tensors.pop(module + UP)
        up = up * adapter.scale_of(module, down.shape[0])
        missing = max(ranks) - down.shape[0]
        down = torch.cat((down, down.new_zeros(missing, down.shape[1])))
        up = torch.cat((up, up.new_zeros(up.shape[0], missing)), 1)
        sizes = tensors.pop(module + SIZES, None)
        if (sizes is not None) != bool(adapter.config.get("use_dora")):
            has, said = ("no", "true") if sizes is None else ("a", "false")
            raise CheckpointError(
                f"{adapter.path / WEIGHTS}: has {has} {module}{SIZES}, and {CONFIG} says use_dora "
                f"{said}: save the adapter again with PEFT"
            )
        if sizes is not None:  # cut as a column of up
            up = torch.cat((up, sizes.reshape(-1, 1)), 1)
        pieces = entry.split(up.t() if entry.is_transposed else up, config)
        for name, piece in zip(entry.ours, pieces, strict=True):
            own = (piece, None) if sizes is None else (piece[..., :-1], piece[..., -1].flatten())
            found[name.removesuffix(WEIGHT)] = Factors(down, *own)
    if tensors or not found:
        names = ", ".join(sorted(tensors)[:5]) or "nothing"
        raise CheckpointError(
            f"{adapter.path / WEIGHTS}: has {names} beside adapters of a {family.name}'s linear "
            f"layers: nothing else has adapters here: {MERGE}"
        )
    return found, {f"head.value.{name.removeprefix('score.')}": t for name, t in whole.items()}


def write_adapter(
    path: Path,
    model: tuple[ModelConfig, Family],
    factors: Mapping[str, Factors],
    scale: float,
    facts: Mapping[str, Any],
) -> None:
    """Write an adapter that PEFT loads.

    Args:
        path: the folder.
        model: config and family of the model.
        factors: by the names of our layers.
        scale: what their products are multiplied by.
        facts: further keys of adapter_config.json, such as the base's name; and under ``tensors``
            whole tensors by their names in the model.
    """
    config, family = model
    facts = dict(facts)
    tensors = {PREFIX + name: t.contiguous() for name, t in facts.pop("tensors", {}).items()}
    ranks: dict[str, int] = {}
    is_transposed = False
    for entry, module, own in _theirs(config, family, factors):
        down, up, sizes = _joined(entry, config, own)
        tensors[PREFIX + module + DOWN], tensors[PREFIX + module + UP] = down, up
        if sizes is not None:
            tensors[PREFIX + module + SIZES] = sizes
        ranks[module], is_transposed = down.shape[0], is_transposed or entry.is_transposed
    rank = min(ranks.values())
    others = {module: own for module, own in ranks.items() if own != rank}
    said = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": _number(scale * rank),
        "rank_pattern": {re.escape(module): own for module, own in others.items()},
        "alpha_pattern": {re.escape(m): _number(scale * own) for m, own in others.items()},
        "target_modules": sorted(ranks),
        "use_dora": any(name.endswith(SIZES) for name in tensors),
        "bias": "none",
        "fan_in_fan_out": is_transposed,
        "inference_mode": True,
    }
    path.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path / WEIGHTS, {"format": "pt"})
    (path / CONFIG).write_text(json.dumps(said | facts, indent=2), encoding="utf-8")


def _theirs(
    config: ModelConfig, family: Family, factors: Mapping[str, Factors]
) -> Iterator[tuple[Entry, str, list[Factors]]]:
    """Each entry with an adapter, their module's name, and the factors of all of its layers."""
    for entry in family.entries(config):
        names = [name.removesuffix(WEIGHT) for name in entry.ours]
        downs = (factors[name].down for name in names if name in factors)
        down = next((one for one in downs if len(one)), None)
        if down is None:
            continue
        absent = [Factors(down[:0], down.new_zeros(size, 0)) for size in _rows(names, config)]
        own = [factors.get(name, none) for name, none in zip(names, absent, strict=True)]
        yield entry, entry.theirs.removesuffix(WEIGHT), own


def _rows(names: list[str], config: ModelConfig) -> list[int]:
    """Rows of the matrix of each of some layers."""
    sizes = {
        "query": config.num_heads * config.head_dim,
        "key": config.kv_heads * config.head_dim,
        "value": config.kv_heads * config.head_dim,
        "up": config.ffn_size,
        "gate": config.ffn_size,
        "output": config.hidden_size,
    }
    return [sizes[name.rpartition(".")[2]] for name in names]


def _joined(entry: Entry, config: ModelConfig, own: list[Factors]) -> Factors:
    """The factors of several layers as those of one: all of A, and a block of B for each."""
    down = torch.cat([one.down for one in own if len(one.down)])
    first, blocks = 0, []
    for one in own:
        sizes = one.up[:, :0] if one.sizes is None else one.sizes[:, None]
        block = torch.cat((one.up.new_zeros(one.up.shape[0], down.shape[0]), sizes), 1)
        block[:, first : first + len(one.down)] = one.up
        first += len(one.down)
        blocks.append(block)
    joined = entry.join(blocks, config)
    up, sizes = (joined.t() if entry.is_transposed else joined).split(
        (down.shape[0], blocks[0].shape[1] - down.shape[0]), 1
    )
    own_sizes = sizes.flatten().contiguous() if sizes.numel() else None
    return Factors(down.contiguous(), up.contiguous(), own_sizes)


def _number(value: float) -> float | int:
    return int(value) if value == int(value) else value
