"""The weights that a run starts from: a checkpoint's, or a Hugging Face folder's."""

from pathlib import Path

from megalite.engine.model import Model
from megalite.engine.weights import check_same_model, load_weights
from megalite.errors import CheckpointError
from megalite.models.config import ModelConfig
from megalite.models.hugging_face import is_hugging_face, read_their_config
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
