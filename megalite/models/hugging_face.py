"""Hugging Face folders in and out: config.json, sharded safetensors or .bin, tensor by tensor."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

from megalite.config.explain import explain
from megalite.errors import CheckpointError, ConfigError
from megalite.models.config import ModelConfig
from megalite.models.families import FAMILIES
from megalite.models.families.table import ONE_LABEL, Family, decisive
from megalite.models.files import has_weights
from megalite.models.tensor_files import TensorFiles

# What a config says of special tokens; where it doesn't, the defaults of its class stand.
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def is_hugging_face(path: Path) -> bool:
    """Whether a folder is a Hugging Face model."""
    return (path / "config.json").is_file()


def has_chat_template(folder: Path) -> bool:
    """Whether a tokenizer's folder says how conversations are written."""
    if any((folder / f"chat_template.{end}").is_file() for end in ("jinja", "json")):
        return True
    try:
        said = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False  # said where the tokenizer is read
    return isinstance(said, dict) and bool(said.get("chat_template"))


def read_config(path: Path) -> tuple[ModelConfig, Family]:
    """The model's config and family.

    Raises:
        CheckpointError: the family is unknown, or its config lacks something.
    """
    where, theirs = f"{path}/config.json", read_their_config(path)
    found = [family for family in FAMILIES.values() if family.knows(theirs)]
    if not found:
        known = [family.model_type or family.name for family in FAMILIES.values()]
        raise CheckpointError(
            f"{where}: model_type {theirs.get('model_type')!r} must be one of "
            f"{', '.join(dict.fromkeys(known))}"
        )
    try:
        if found[0].tied_by_files and has_weights(path):
            theirs = _tied_as_files_are(theirs, path, *found[0].tied_by_files)
        return found[0].read(theirs), found[0]
    except KeyError as error:
        raise CheckpointError(f"{where}: must have the key or value {error}") from None
    except ValidationError as error:
        raise CheckpointError(explain(error, ModelConfig, where, set())) from None
    except (ValueError, ConfigError) as error:
        raise CheckpointError(f"{where}: {error}") from None
    except (TypeError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(
            f"{where}: a value is of another kind than a {found[0].name} has: {error}: compare it "
            "with the published file"
        ) from None


def _tied_as_files_are(
    theirs: dict[str, Any], path: Path, head: str, embedding: str
) -> dict[str, Any]:
    """A config that says of a folder's head what its files hold, where it has one of its own."""
    files = TensorFiles(path)
    if not {head, embedding} <= set(files.names()) or files.is_copy(head, embedding):
        return theirs
    return theirs | {"tie_word_embeddings": False}


def unread_keys(path: Path) -> str:
    """In words, which keys of a folder's config are not read, and may mean something."""
    _, family = read_config(path)
    keys = family.unread(read_their_config(path))
    return f"{path}/config.json: not read: {', '.join(keys)}" if keys else ""


def read_their_config(path: Path) -> dict[str, Any]:
    """A folder's config.json.

    Raises:
        CheckpointError: there is none, or it is no JSON object.
    """
    try:
        theirs = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}/config.json: can't be read: {error}") from None
    if not isinstance(theirs, dict):
        raise CheckpointError(f"{path}/config.json: must be a JSON object")
    return theirs


def our_tensors(path: Path, config: ModelConfig, family: Family) -> Iterator[tuple[str, Tensor]]:
    """Every parameter of a Hugging Face folder under our name, in any of its shapes.

    Raises:
        CheckpointError: a tensor is missing, or one is unknown (it lists them), or one that must
            be 0 is not.
    """
    files = TensorFiles(path)
    names, entries = set(files.names()), list(family.entries(config))
    prefix = _missing_prefix(names, {entry.theirs for entry in entries})
    stored = {entry.theirs: entry.theirs.removeprefix(prefix) for entry in entries}
    table = next(e.theirs for e in entries if "embedding.weight" in e.ours)
    stored[table] = embedding = _kept_as(stored[table], names - set(stored.values()), names)
    wanted = set(stored.values())
    zero = {name for name in names if name.endswith(family.zero)}
    unknown = {name for name in names - wanted - zero if not name.endswith(family.ignored)}
    if wanted <= names:
        unknown -= _copies(files, unknown, embedding, path)
    if wanted - names or unknown:
        raise CheckpointError(
            f"{path}: is not a whole {family.name}: missing {_list(wanted - names)}; "
            f"unknown {_list(unknown)}"
        )
    for name in sorted(zero):
        _check_zero(name, files.read(name), path)
    for entry in entries:
        tensor = files.read(stored[entry.theirs])
        try:
            pieces = entry.split(tensor, config)
        except RuntimeError:
            raise CheckpointError(
                f"{path}: {entry.theirs} is {list(tensor.shape)}; its config.json says otherwise"
            ) from None
        yield from zip(entry.ours, pieces, strict=True)


COPIES = ("lm_head.weight", "embed_tokens.weight")  # endings of other names of a tied table


def _kept_as(embedding: str, others: set[str], names: set[str]) -> str:
    """The embedding's name in the files: of the names of a tied table any one may be kept."""
    kept = [] if embedding in names else sorted(n for n in others if n.endswith(COPIES))
    return kept[0] if kept else embedding


def _copies(files: TensorFiles, names: set[str], embedding: str, path: Path) -> set[str]:
    """Those of some names that hold the embedding again, as tied heads and second stacks do.

    Raises:
        CheckpointError: one has the name of a copy, and other values.
    """
    copies, shape = set(), files.shape(embedding)
    for name in sorted(names):
        if files.is_copy(name, embedding):
            copies.add(name)
        elif files.shape(name) == shape and name.endswith(COPIES):
            raise CheckpointError(
                f"{path}: {name} must be {embedding} again, as config.json ties them, and has "
                "other values: set tie_word_embeddings to false there, or leave it out of the files"
            )
    return copies


def _check_zero(name: str, tensor: Tensor, path: Path) -> None:
    largest = float(tensor.abs().max())
    if largest != 0:
        raise CheckpointError(
            f"{path}: {name} must be all 0, as a model here has nothing of the kind, came "
            f"{largest:g}: clear it, or take a checkpoint that was trained without it"
        )


def fitted(name: str, piece: Tensor, shape: torch.Size, path: Path) -> Tensor:
    """A tensor in the shape of our parameter.

    Raises:
        CheckpointError: it has another shape, one of as many elements too, as a transposed matrix.
    """
    came, wanted = _flat(name, piece).shape, _flat(name, torch.empty(shape, device="meta")).shape
    if came != wanted:
        raise CheckpointError(
            f"{path}: {name} is {list(came)}, and {list(wanted)} by config.json: correct that, "
            "or take the files that belong to it"
        )
    return piece.reshape(shape)


def _missing_prefix(names: set[str], wanted: set[str]) -> str:
    """The first part of their names where a folder of the bare model leaves it out."""
    prefix = next(iter(sorted(wanted, key=len, reverse=True))).split(".")[0] + "."
    has = any(name.startswith(prefix) for name in names)
    return "" if has else prefix


def _list(names: set[str]) -> str:
    shown = sorted(names)[:10]
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return (", ".join(shown) or "nothing") + more


def family_of(config: ModelConfig, name: str = "") -> Family:
    """The family to write a config as: the named one, or the first that can say all of it.

    Raises:
        CheckpointError: there is none; it says what the closest can't have.
    """
    if name and name not in FAMILIES:
        raise CheckpointError(f"family {name!r}: must be one of {', '.join(FAMILIES)}")
    families = [FAMILIES[name]] if name else list(FAMILIES.values())
    if config.head == "value":
        families = _scored(config, families)
    lost = {family.name: family.lost(config) for family in families}
    closest = min(lost, key=lambda name: (any(" " in said for said in lost[name]), len(lost[name])))
    if lost[closest]:
        raise CheckpointError(
            f"this model is no {closest}{'' if name else ', the closest family'}: one can't have "
            f"its {', '.join(lost[closest])}"
        )
    return FAMILIES[closest]


def _scored(config: ModelConfig, families: list[Family]) -> list[Family]:
    """Those of some families that have reward models.

    Raises:
        CheckpointError: there are none, or only others can have these blocks.
    """
    blocks = config.model_copy(update={"head": "lm"})
    fit = [family for family in families if not family.lost(blocks)] or families
    scored = [family for family in fit if family.is_scored]
    if not scored:
        name = fit[0].name
        known = ", ".join(family.name for family in FAMILIES.values() if family.is_scored)
        raise CheckpointError(
            f"this reward model can't be written as {name}: transformers has no class of it that "
            f"reads a score at the last token (of {known} it has): PPO takes it as it is, by "
            "--reward_model"
        )
    return scored


@dataclass(frozen=True)
class Storage:
    """How a folder's files hold tensors.

    Attributes:
        dtype: of most of them.
        others: of those that have another, by their names.
        shard_bytes: most bytes of a file.
    """

    dtype: torch.dtype = torch.float32
    others: Mapping[str, torch.dtype] = field(default_factory=dict)
    shard_bytes: int = 5_000_000_000

    def dtype_of(self, name: str) -> torch.dtype:
        """The dtype of a tensor of theirs."""
        return self.others.get(name, self.dtype)


DEFAULT_STORAGE = Storage()


def write_folder(
    path: Path,
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    storage: Storage = DEFAULT_STORAGE,
    published: Mapping[str, Any] | None = None,
) -> None:
    """Write a Hugging Face folder that ``from_pretrained`` loads.

    Args:
        path: the folder.
        config: of the model.
        tensors: whole parameters by our names.
        storage: how tensors are stored.
        published: their config that this model came from: it tells the family, and its further
            keys, such as the numbers of special tokens, are kept.
    """
    published = dict(published or {})
    kind = next((f for f in FAMILIES.values() if f.knows(published)), None)
    kind = family_of(config, kind.name if kind else "")
    path.mkdir(parents=True, exist_ok=True)
    published.pop("dtype", None)  # the older name is known to every version
    if config.head == "value":
        published.pop("architectures", None)
        published |= ONE_LABEL
    published["torch_dtype"] = str(storage.dtype).removeprefix("torch.")
    theirs = _merged(published, kind, config)
    (path / "config.json").write_text(json.dumps(theirs, indent=2), encoding="utf-8")
    shard: dict[str, Tensor] = {}
    where: dict[str, int] = {}
    size, number, total = 0, 1, 0
    for entry in kind.entries(config):
        ours = [_flat(name, tensors[name]) for name in entry.ours]
        tensor = entry.join(ours, config).to(storage.dtype_of(entry.theirs)).contiguous()
        if shard and size + tensor.nbytes > storage.shard_bytes:
            save_file(shard, path / f"model-{number:05}.safetensors", {"format": "pt"})
            shard, size, number = {}, 0, number + 1
        shard[entry.theirs], where[entry.theirs] = tensor, number
        size, total = size + tensor.nbytes, total + tensor.nbytes
    save_file(shard, path / f"model-{number:05}.safetensors", {"format": "pt"})
    _name_shards(path, where, number, total)


def _merged(published: dict[str, Any], kind: Family, config: ModelConfig) -> dict[str, Any]:
    """Our config as theirs: in the words of the published one where that still says the same.

    What was changed on purpose stands under every key that says it; other keys are kept.
    """
    unknown, written = dict.fromkeys(TOKENS), kind.write(config)
    try:
        kept = unknown | written | published
        if decisive(kind.read(kept)) == decisive(config):
            return kept
    except (KeyError, ValueError, ConfigError):
        pass  # there is no published config, or it is of another family
    others = {key: value for key, value in published.items() if key not in kind.aliases}
    return unknown | others | written


def _flat(name: str, tensor: Tensor) -> Tensor:
    """Our [N, H, D] as [N H, D], [D, N, H] as [D, N H], a bias [N, H] as [N H]."""
    if name.endswith("bias"):
        return tensor.flatten()
    if tensor.dim() < 3:
        return tensor
    return tensor.flatten(1) if name.endswith("output.weight") else tensor.flatten(0, -2)


def _name_shards(path: Path, where: dict[str, int], count: int, total: int) -> None:
    if count == 1:
        (path / "model-00001.safetensors").rename(path / "model.safetensors")
        return
    final = {n: f"model-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)}
    for number, name in final.items():
        (path / f"model-{number:05}.safetensors").rename(path / name)
    index = {
        "metadata": {"total_size": total},
        "weight_map": {name: final[number] for name, number in where.items()},
    }
    (path / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
