"""What a checkpoint of adapters says of them: what they are, and which base they belong to."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megalite.training.checkpoint.manifest import Facts
from megalite.training.folder.record import RunRecord
from megalite.training.learner import Learner

BASES = {"critic": "reward_model"}  # what is read before checkpoint.start, if it is given


def adapter_facts(learners: Sequence[Learner], record: RunRecord) -> Facts:
    """Facts of a manifest: under ``lora``, for each model that learns by adapters, both.

    The base is named by the whole path of what was read, or by its name and commit on the Hub.
    """
    found: dict[str, Any] = {}
    for learner in learners:
        lora = learner.model.lora
        if lora.rank:
            sources = record.sources
            base = sources.get(BASES.get(learner.name, ""), sources.get("checkpoint.start"))
            found[learner.name] = {
                "config": lora.model_dump(mode="json"),
                "base": named_base(base) if base else {},  # the first process has looked
            }
    return {"lora": found} if found else {}


def named_base(source: Mapping[str, Any]) -> Facts:
    """A stored model and its fingerprint; a path is made one that holds from anywhere."""
    path = Path(source["path"])
    return {**source, "path": str(path.resolve()) if path.exists() else source["path"]}
