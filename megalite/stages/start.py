"""What a run starts from: a checkpoint, or a Hugging Face folder; its model and its weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from megalite.engine.lora import ADAPTER, is_linear, quantised_of, round_base
from megalite.engine.model import Model
from megalite.engine.weights import (
    VOCABULARY,
    check_same_model,
    config_of,
    fill,
    fill_all,
    grown,
    with_vocabulary,
)
from megalite.errors import CheckpointError
from megalite.layers.shards import Share, local_box, local_part
from megalite.models.config import ModelConfig
from megalite.models.families.table import TRAINING
from megalite.models.hub import folder_of
from megalite.models.hugging_face import (
    is_hugging_face,
    read_config,
    read_their_config,
    unread_keys,
)
from megalite.models.tensor_files import dtypes_of
from megalite.stages.adapters import StoredAdapters, adapters_of, name_of
from megalite.stages.special_tokens import SpecialTokens
from megalite.training.checkpoint.checking import Checkers, verify_together
from megalite.training.checkpoint.load import find_checkpoint, load
from megalite.training.checkpoint.manifest import Facts, read_manifest
from megalite.training.checkpoint.search import newest_facts
from megalite.training.folder.record import ORIGIN

Head = Literal["lm", "value"]
ALONE = Checkers()
OWN = TRAINING | {"head"}  # the run's to choose, whatever its start says


def stored_config(path: str | Path) -> tuple[ModelConfig, str]:
    """The config of a stored model, and the file that says it.

    Raises:
        CheckpointError: there is no model.
    """
    path = folder_of(path)
    if is_hugging_face(path):
        return read_config(path)[0], f"{path}/config.json"
    found = find_checkpoint(path)
    facts, _ = read_manifest(found)  # the files are checked when they are loaded
    return config_of(facts, found), str(found)


def as_stored(
    model: ModelConfig,
    path: str | Path,
    head: Head,
    needs_head: bool = False,
    grows: bool = False,
) -> tuple[ModelConfig, str]:
    """A model as a run or folder has it, where ``[model]`` says nothing else.

    Args:
        model: what the run says: the keys that are set in it.
        path: a checkpoint of ours or a Hugging Face folder.
        head: that it is to have.
        needs_head: whether the folder must have it too.
        grows: whether its vocabulary may get rows.

    Returns:
        The whole model, in which the same keys are set, and what was taken, in words.

    Raises:
        CheckpointError: there is no model, or a key that is set contradicts it.
    """
    stored, where = stored_config(path)
    _check_head(head, stored.head, where, needs_head)
    own = {key: getattr(model, key) for key in OWN | model.model_fields_set}
    whole = stored.model_copy(update=own)
    check_same_model(whole, with_vocabulary(stored, whole, grows), where)
    taken = {
        key: value
        for key, value in stored.model_dump(exclude=set(own)).items()
        if value != ModelConfig.model_fields[key].default
    }
    said = ", ".join(f"{key} {value}" for key, value in taken.items())
    whole = ModelConfig.model_construct(model.model_fields_set, **dict(whole))
    lines = [f"model as in {where}: {said}"] if said else []
    if whole.vocab_size > stored.vocab_size:
        lines.append(
            f"the vocabulary grows from {stored.vocab_size} to {whole.vocab_size}: each new row is "
            "the mean of the others"
        )
    if is_hugging_face(folder_of(path)):
        lines += filter(None, [unread_keys(folder_of(path))])
    return whole, "\n".join(lines)


def settled_model(
    model: ModelConfig, start: str, folder: str | Path, head: Head, vocabulary: int = 0
) -> tuple[ModelConfig, str]:
    """A run's whole model: what ``[model]`` doesn't say is as the run stopped, or as its start is.

    Args:
        model: what the run says.
        start: what it starts from; empty: nothing.
        folder: of the run, which may have checkpoints already.
        head: that it is to have.
        vocabulary: tokens of the tokenizer, where the start's tables may grow to them; 0: they
            stay.

    Returns:
        The model, in which the same keys are set, and what was taken, in words.

    Raises:
        CheckpointError: the start is no model, or a key that is set contradicts it.
    """
    found = newest_facts(Path(folder) / "checkpoints")
    if found is not None:  # its folder says whether it is this run's
        return as_stored(model, found[0], found[1]["model"].get("head", head))
    if not start:
        return model, ""
    if vocabulary and "vocab_size" not in model.model_fields_set:
        rows = max(vocabulary, stored_config(start)[0].vocab_size)
        model = ModelConfig.model_construct(
            model.model_fields_set | {"vocab_size"}, **{**dict(model), "vocab_size": rows}
        )
    return as_stored(model, start, head, grows=vocabulary > 0)


def origin_of(start: str) -> Facts:
    """What a run's checkpoints keep of its start: the published config and types it came from."""
    if not start:
        return {}
    folder = folder_of(start)
    if is_hugging_face(folder):
        return {"published": read_their_config(folder), **dtypes_of(folder)}
    facts, _ = read_manifest(find_checkpoint(folder))
    return {key: facts[key] for key in ORIGIN if key in facts}


def said_by(start: str) -> SpecialTokens:
    """What the published config of a start says of special tokens; nothing without a start.

    Of a start that isn't there it says nothing: the run's folder knows what it was.
    """
    folder = folder_of(start)
    if start and is_hugging_face(folder):
        return SpecialTokens.of(read_their_config(folder) | generation_config(folder))
    try:
        return SpecialTokens.of(origin_of(start).get("published", {}))
    except CheckpointError:
        return SpecialTokens.of({})


def generation_config(folder: Path) -> dict[str, Any]:
    """What a folder's generation_config.json says; nothing where there is none.

    Raises:
        CheckpointError: it can't be read.
    """
    path = folder / "generation_config.json"
    if not path.is_file():
        return {}
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: can't be read: {error}") from None
    if not isinstance(said, dict):
        raise CheckpointError(f"{path}: must be a JSON object")
    return {key: value for key, value in said.items() if value is not None}


def load_start(
    model: Model,
    start: str,
    needs_head: bool = False,
    grows: bool = False,
    checkers: Checkers = ALONE,
) -> None:
    """Load weights from a checkpoint of ours or a Hugging Face folder.

    Args:
        model: gets the weights.
        start: the folder, or a model's name on the Hub that is in the cache.
        needs_head: refuse a checkpoint without this model's kind of head, instead of a new one.
        grows: whether the vocabulary may get rows; see :func:`megalite.engine.weights.grown`.
        checkers: who check the files of a checkpoint of ours, who all call this.

    Raises:
        CheckpointError: there is none, it is damaged, or it is of another model.

    Comm: as :func:`verify_together`.
    """
    matrices = quantised_of(model.parts)
    shares = {name: matrix.share() for name, matrix in matrices.items()}
    own = {n: p.detach() for n, p in model.named_parameters() if ADAPTER not in n}
    fill_from({**own, **shares}, model.config, start, needs_head, grows, checkers)
    for name, matrix in matrices.items():
        matrix.hold(shares.pop(name))
    model.copy_duplicates()


def fill_from(
    parameters: Mapping[str, Tensor | Share],
    wanted: ModelConfig,
    start: str,
    needs_head: bool = False,
    grows: bool = False,
    checkers: Checkers = ALONE,
) -> None:
    """Fill parameters from a stored model, each process what it holds of them.

    A checkpoint of adapters is its base with their products added.

    Args:
        parameters: by the whole model's names, without adapters.
        wanted: config of the model.
        start: as for :func:`load_start`.
        needs_head: as for :func:`load_start`.
        grows: as for :func:`load_start`.
        checkers: as for :func:`load_start`.

    Raises:
        CheckpointError: as :func:`load_start`.

    Comm: as :func:`load_start`.
    """
    folder = folder_of(start)
    if is_hugging_face(folder):
        stored, _ = read_config(folder)
        _check_head(wanted.head, stored.head, start, needs_head)
        fill_all(parameters, wanted, folder, grows)
        return
    path = find_checkpoint(folder)
    facts = verify_together(path, checkers)
    stored = config_of(facts, path)
    _check_head(wanted.head, stored.head, str(path), needs_head)
    check_same_model(wanted, with_vocabulary(stored, wanted, grows), str(path))
    if wanted.head != stored.head:
        parameters = {n: p for n, p in parameters.items() if not n.startswith("head.")}
    adapters = adapters_of(facts, path)
    if adapters is not None:
        _fill_adapted(parameters, wanted, adapters, checkers)
        return
    shares = {n: p for n, p in parameters.items() if isinstance(p, Share)}
    for name, share in shares.items():
        whole = torch.empty(share.shape)
        load(path, {f"{name_of(facts)}.{name}": whole})
        fill(share, whole)
    parts = ((n, p) for n, p in parameters.items() if not isinstance(p, Share))
    tensors = {f"{name_of(facts)}.{n}": p for n, p in parts}
    if wanted.vocab_size > stored.vocab_size:
        tables = {f"{name_of(facts)}.{table}" for table in VOCABULARY} & tensors.keys()
        _load_grown(path, {table: tensors.pop(table) for table in tables}, stored.vocab_size)
    load(path, tensors)


def _fill_adapted(
    parameters: Mapping[str, Tensor | Share],
    wanted: ModelConfig,
    adapters: StoredAdapters,
    checkers: Checkers,
) -> None:
    """Fill parameters from the base of adapters, as they were trained beside it, and add these.

    Of a quantised base, or with DoRA, each process reads whole matrices into its memory, in fp32: a
    block or a row of them may lie in several processes' parts.
    """
    form, wholes = adapters.lora.form, dict[str, Tensor | Share]()
    if form is not None or adapters.lora.dora:
        linear = (n for n in parameters if is_linear(n))
        wholes = {name: _whole(parameters[name]) for name in linear}
    own = {**parameters, **wholes}
    # as the adapters' run let the vocabulary grow
    fill_from(own, wanted, adapters.base, grows=True, checkers=checkers)
    if form is not None:
        round_base(wholes, form)
    adapters.add_to(own)
    for name, whole in wholes.items():
        if whole is not parameters[name]:
            fill(parameters[name], local_part(whole))


def _whole(parameter: Tensor | Share) -> Tensor | Share:
    """A parameter that is whole here, in fp32; or memory for it."""
    is_here = local_box(parameter)[0] == tuple(parameter.shape)
    local = local_part(parameter)
    is_fit = is_here and local.dtype == torch.float32 and local.device.type == "cpu"
    return parameter if is_fit else Share.whole(parameter.shape)


def _load_grown(path: Path, tables: dict[str, Tensor], rows: int) -> None:
    """Load tables of the vocabulary, each whole on each process, into larger ones."""
    for name, table in tables.items():
        stored = torch.empty(rows, *table.shape[1:])
        load(path, {name: stored})
        fill(table, grown(name.partition(".")[2], stored, table.shape[0]))


def _check_head(wanted: Head, stored: Head, where: str, needs_head: bool) -> None:
    """Refuse a head that the weights don't have; a new scalar one is made unless it is needed."""
    if wanted == stored:
        return
    if wanted == "lm":
        raise CheckpointError(
            f"{where}: is a reward model, which has no head for text; this needs a language model"
        )
    if needs_head:
        raise CheckpointError(
            f"{where}: is a language model, which has no trained scalar head; `megalite rm` makes "
            "a reward model of it"
        )
