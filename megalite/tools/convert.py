"""``megalite convert``: from a Hugging Face folder to a checkpoint of ours, or back.

Either way one file of weights is in memory at a time: a folder's tensors go through memory-mapped
scratch files on the target's disk, a checkpoint's are read when they are written.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from safetensors import SafetensorError
from torch import Tensor

from megalite.config.section import Section
from megalite.distributed.launch import Launch
from megalite.engine.weights import config_of, parameter_shapes
from megalite.errors import CheckpointError, ConfigError, DataError
from megalite.models.families import FAMILIES
from megalite.models.files import has_tokenizer
from megalite.models.hub import folder_of, pinned
from megalite.models.hugging_face import (
    Storage,
    fitted,
    is_hugging_face,
    our_tensors,
    read_config,
    read_their_config,
    unread_keys,
    write_folder,
)
from megalite.models.peft import is_adapter
from megalite.models.tensor_files import DTYPES, dtypes_of
from megalite.stages.adapters import name_of
from megalite.stages.start import fill_from
from megalite.stages.told import tokenizer_of
from megalite.tools.adapters import export_adapter, import_adapter
from megalite.tools.companions import (
    SaidBefore,
    carry_code,
    carry_tokenizer,
    missing,
    say_special_tokens,
)
from megalite.training.checkpoint.load import find_checkpoint, load
from megalite.training.checkpoint.manager import CheckpointManager
from megalite.training.checkpoint.manifest import verify
from megalite.training.checkpoint.reader import CheckpointReader
from megalite.training.learner import AVERAGES


class ConvertConfig(Section):
    """What is converted, and to where."""

    source: str = Field(
        description="Hugging Face folder, adapter in PEFT's format, or run or checkpoint of ours"
    )
    target: str = Field(description="new folder, which must not exist")
    dtype: Literal["keep", "fp32", "bf16", "fp16"] = Field(
        "keep",
        description="type of a new Hugging Face folder's weights; keep: of the folder that the "
        "model came from, or fp32; fp32, bf16, fp16: this one",
    )
    average: bool = Field(
        False,
        description="whether a checkpoint's running mean of the weights (train.average) is taken "
        "instead of the weights",
    )
    shard_gib: float = Field(4.0, gt=0, description="most GiB of a new folder's files of weights")
    family: str = Field(
        "",
        description="model family of a new Hugging Face folder; empty: the one it came from, or "
        "the first that has such models",
    )
    adapter: bool = Field(
        False,
        description="whether the adapters of a LoRA run are written alone, in PEFT's format, "
        "instead of weights that they are merged into",
    )
    base: str = Field(
        "",
        description="Hugging Face folder or name of the model that an adapter of PEFT's belongs "
        "to; empty: the one that its config names",
    )
    tokenizer: str = Field(
        "",
        description="tokenizer that is copied, a folder or file; empty: the source's or its run's",
    )


def run(config: ConvertConfig, launch: Launch) -> int:
    """Convert; only rank 0 does."""
    if launch.rank != 0:
        return 0
    target = Path(config.target)
    if target.exists():
        raise ConfigError(f"--target {target}: exists already; give a new folder")
    named, fetched = pinned(Launch(), "source", config.source, "model")
    source = folder_of(named)
    if not source.exists():
        raise ConfigError(f"--source {source}: no such folder")
    _check_options(config, is_adapter(source))
    if config.adapter or is_adapter(source):
        print(*filter(None, [fetched, *_adapter(config, source, target)]), sep="\n")  # noqa: T201
        return 0
    tokenizer = _tokenizer(config.tokenizer, named)
    to_ours = is_hugging_face(source)
    if to_ours:
        _check_to_checkpoint(config, source)
    said = [fetched, unread_keys(source) if to_ours else ""]
    with _whole_or_not_at_all(target) as partial:
        published = (_to_checkpoint if to_ours else _to_folder)(config, source, partial)
        carry_code(source, partial)
        if tokenizer is not None:
            said.append(carry_tokenizer(tokenizer, partial))
        if not to_ours and tokenizer is not None:
            before = SaidBefore.by(source, published, is_own=not config.tokenizer)
            said.append(_say_special_tokens(partial, target, before))
    kind = "a checkpoint" if to_ours else "a Hugging Face folder"
    without = "" if tokenizer else f", without a tokenizer: {missing(source)}"
    print(*filter(None, said), f"{target}: {kind}{without}", sep="\n")  # noqa: T201
    return 0


def _check_options(config: ConvertConfig, is_theirs: bool) -> None:
    """Refuse options that have no effect beside an adapter, or without one.

    Raises:
        ConfigError: it names the key.
    """
    beside = "is of whole weights, and only an adapter is written: leave it out"
    if is_theirs and config.adapter:
        raise ConfigError(
            f"--adapter: {config.source} is an adapter in PEFT's format already: leave it out to "
            "make a checkpoint of it"
        )
    if config.base and not is_theirs:
        raise ConfigError(
            f"--base {config.base}: names the model of an adapter in PEFT's format, and "
            f"{config.source} is none: leave it out"
        )
    for key in ("dtype", "average", "shard_gib", *(("family",) if is_theirs else ("tokenizer",))):
        if (config.adapter or is_theirs) and key in config.model_fields_set:
            raise ConfigError(f"--{key} {getattr(config, key)}: {beside}")


def _check_to_checkpoint(config: ConvertConfig, source: Path) -> None:
    """Refuse options that have no effect where a checkpoint is made of a Hugging Face folder.

    Raises:
        ConfigError: it names the key.
    """
    if config.average:
        raise ConfigError(f"--average true: {source} is a Hugging Face folder, which has no mean")
    for key in ("dtype", "shard_gib", "family"):
        if key in config.model_fields_set:
            raise ConfigError(
                f"--{key} {getattr(config, key)}: is of a new Hugging Face folder; {source} is one "
                "and a checkpoint is made of it, in fp32: leave it out"
            )


def _adapter(config: ConvertConfig, source: Path, target: Path) -> list[str]:
    """Convert an adapter to PEFT's format or from it; give what is to be said."""
    with _whole_or_not_at_all(target) as partial:
        if not is_adapter(source):
            said = export_adapter(source, partial, config.family)
            return [said, f"{target}: an adapter in PEFT's format"]
        base, said = import_adapter(source, partial, config.base)
        tokenizer = _tokenizer(config.tokenizer, base)
        lines = [] if tokenizer is None else [carry_tokenizer(tokenizer, partial)]
    return [said, *lines, f"{target}: a checkpoint of an adapter, whose base is {base}"]


def _tokenizer(named: str, source: str) -> Path | None:
    """The tokenizer to carry: the named one, the source's own, or the one its run was told.

    Raises:
        ConfigError: ``named`` is no tokenizer.
    """
    if not named:
        own = tokenizer_of(source)
        return folder_of(own) if own else None
    path = folder_of(pinned(Launch(), "tokenizer", named, "tokenizer")[0])
    if not path.exists() or (path.is_dir() and not has_tokenizer(path)):
        raise ConfigError(
            f"--tokenizer {named}: must be a folder with a tokenizer, a tokenizer.json or a "
            "SentencePiece .model; there is none"
        )
    return path


@contextmanager
def _whole_or_not_at_all(target: Path) -> Iterator[Path]:
    """A folder to write, which becomes ``target`` if nothing fails.

    Raises:
        DataError: it can't be written; nothing is left of it.
    """
    made = [folder for folder in target.parents if not folder.exists()]
    partial = target.parent
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        yield partial
        partial.chmod(0o755)
        partial.rename(target)
        made = []
    except CheckpointError as error:
        raise CheckpointError(str(error).replace(str(partial), str(target))) from None
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        place = getattr(error, "filename", None)
        if place and not Path(place).is_relative_to(partial):
            raise
        raise DataError(
            f"--target {target}: can't be written: {reason}; nothing of it is left"
        ) from None
    finally:
        if partial != target.parent:
            shutil.rmtree(partial, ignore_errors=True)
        for folder in made:
            with suppress(OSError):
                folder.rmdir()


def _say_special_tokens(partial: Path, target: Path, before: SaidBefore) -> str:
    try:
        return say_special_tokens(partial, before)
    except DataError as error:
        reason = str(error).replace(str(partial), str(target))
        return f"{reason}; special tokens stay as the configs have them"


def _to_checkpoint(_config: ConvertConfig, source: Path, target: Path) -> dict[str, Any]:
    model_config, family = read_config(source)
    shapes = parameter_shapes(model_config)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        tensors = {
            f"model.{name}": _mapped(Path(scratch) / str(number), shape)
            for number, (name, shape) in enumerate(shapes.items())
        }
        for name, tensor in our_tensors(source, model_config, family):
            tensors[f"model.{name}"].copy_(fitted(name, tensor, shapes[name], source))
        facts = {
            "step": 0,
            "consumed_samples": 0,
            "extra": {},
            "learners": {"model": {}},
            "model": model_config.model_dump(),
            **dtypes_of(source),
            "published": read_their_config(source),
        }
        manager = CheckpointManager(target / "checkpoints", keep=2, asynchronous=False, say=print)
        manager.save(0, tensors, facts)
        manager.wait()
    return read_their_config(source)


def _mapped(path: Path, shape: torch.Size) -> Tensor:
    """An fp32 tensor whose memory is a new file.

    Its blocks are taken first: where the disk is full, a write into memory would end the process.
    """
    with open(path, "xb") as file:
        os.posix_fallocate(file.fileno(), 0, 4 * shape.numel())
    return torch.from_file(str(path), shared=True, size=shape.numel()).view(shape)


class _Saved(Mapping[str, Tensor]):
    """A checkpoint's parameters, each read when it is asked for."""

    def __init__(self, path: Path, prefix: str, shapes: dict[str, torch.Size]) -> None:
        self._reader, self._prefix, self._shapes = CheckpointReader(path), prefix, shapes

    def __getitem__(self, name: str) -> Tensor:
        tensor = torch.empty(self._shapes[name])
        load(self._reader, {f"{self._prefix}.{name}": tensor})
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def _to_folder(config: ConvertConfig, source: Path, target: Path) -> dict[str, Any]:
    """Write the folder; give the published config that its model came from."""
    path = find_checkpoint(source)
    facts: dict[str, Any] = verify(path)
    model_config = config_of(facts, path)
    name, shapes = name_of(facts), parameter_shapes(model_config)
    if config.average and not facts["learners"][name].get(AVERAGES):
        raise ConfigError(
            f"--average true: {path} has no mean of the weights: its run had no train.average"
        )
    dtype, others = DTYPES[facts.get("dtype", "fp32")], facts.get("dtypes", {})
    if config.dtype != "keep":
        dtype, others = DTYPES[config.dtype], {}
    kinds = {name: DTYPES[kind] for name, kind in others.items()}
    storage = Storage(dtype, kinds, int(config.shard_gib * 2**30))
    published = _published(config, facts)
    if "lora" not in facts:
        saved = f"{name}_average" if config.average else name
        tensors = _Saved(path, saved, shapes)
        write_folder(target, model_config, tensors, storage, published)
        return published
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        merged = {
            name: _mapped(Path(scratch) / str(number), shape)
            for number, (name, shape) in enumerate(shapes.items())
        }
        fill_from(merged, model_config, str(path))
        write_folder(target, model_config, merged, storage, published)
    return published


def _published(config: ConvertConfig, facts: dict[str, Any]) -> dict[str, Any]:
    """The config that the model came from, or what ``--family`` tells of it."""
    if not config.family:
        return facts.get("published", {})
    if config.family not in FAMILIES:
        raise ConfigError(f"--family {config.family}: must be one of {', '.join(FAMILIES)}")
    family = FAMILIES[config.family]
    marker = {family.marker: 0} if family.marker else {}
    return {"model_type": family.model_type or family.name, **marker}
