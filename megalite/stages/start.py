"""The weights that a run starts from: a checkpoint's, or a Hugging Face folder's."""

import json
from pathlib import Path
from typing import Any

from megalite.engine.model import Model
from megalite.engine.weights import check_same_model, load_weights
from megalite.errors import CheckpointError
from megalite.models.config import ModelConfig
from megalite.models.hugging_face import is_hugging_face, read_their_config
from megalite.stages.special_tokens import SpecialTokens
from megalite.training.checkpoint.load import find_checkpoint, load
from megalite.training.checkpoint.manifest import Facts, read_manifest, verify


def origin_of(start: str) -> Facts:
    """What a run's checkpoints keep of its start: the published config that it came from."""
    if not start:
        return {}
    if is_hugging_face(Path(start)):
        return {"published": read_their_config(Path(start))}
    facts, _ = read_manifest(find_checkpoint(start))
    return {"published": facts["published"]} if "published" in facts else {}


def said_by(start: str) -> SpecialTokens:
    """What the published config of a start says of special tokens; nothing without a start.

    Of a start that isn't there it says nothing: the run's folder knows what it was.
    """
    folder = Path(start)
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


def load_start(model: Model, start: str, needs_head: bool = False) -> None:
    """Load weights from a checkpoint of ours or a Hugging Face folder.

    Args:
        model: gets the weights.
        start: the folder.
        needs_head: refuse a checkpoint without this model's kind of head, instead of a new one.

    Raises:
        CheckpointError: there is none, it is damaged, or it is of another model.
    """
    if is_hugging_face(Path(start)):
        if needs_head and model.config.head == "value":
            raise CheckpointError(
                f"{start}: a language model has no trained value head; `megalite rm` makes one"
            )
        load_weights(model, Path(start))
        return
    path = find_checkpoint(start)
    facts = verify(path)
    stored = ModelConfig(**facts["model"])
    name = "model" if "model" in facts["learners"] else "actor"
    tensors = {f"{name}.{n}": p.detach() for n, p in model.named_parameters()}
    was, now = stored.head, model.config.head
    if was != now and needs_head:
        raise CheckpointError(f"{path}: has a {was} head; this model needs a trained {now} head")
    if was != now:
        if now != "value":
            raise CheckpointError(f"{path}: has a {was} head; this stage needs a {now} head")
        tensors = {n: p for n, p in tensors.items() if ".head." not in n}
    check_same_model(model.config, stored, str(path))
    load(path, tensors)
    model.copy_duplicates()
