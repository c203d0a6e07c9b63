"""Under which name a run's local checkpoints lie on its nodes' disks."""

import uuid
from pathlib import Path

from megalite.training.checkpoint.files import write_synced
from megalite.training.checkpoint.manifest import digest_of

NAME = "local-id"


def local_name(folder: Path) -> str:
    """A name that this run alone has; one that begins anew in the same folder has another.

    Args:
        folder: of the run; a file among its checkpoints keeps the name.
    """
    path = folder / "checkpoints" / NAME
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_synced(path, f"{digest_of(str(folder.resolve()))[:12]}-{uuid.uuid4().hex[:12]}")
    return path.read_text(encoding="utf-8").strip()
