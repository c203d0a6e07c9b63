"""What a run saves on its nodes' own disks."""

from megalite.training.checkpoint.local.checkpoints import LocalCheckpoints, Place
from megalite.training.checkpoint.manager import CheckpointManager, Saving
from megalite.training.config import LocalConfig
from megalite.training.folder.local_name import local_name
from megalite.training.folder.starts import Starts
from megalite.training.local_saves import LocalSaves
from megalite.training.metrics.run_log import RunLog


def local_saves(
    config: LocalConfig,
    shared: CheckpointManager,
    saving: Saving,
    place: Place,
    log: RunLog,
    starts: Starts,
) -> LocalSaves:
    """Local checkpoints as a config wants them.

    Args:
        config: their section.
        shared: the run's other checkpoints.
        saving: who saves together, and how long that may take.
        place: of this process among the nodes.
        log: of the run's folder.
        starts: are told how far a start had come.

    Raises:
        ConfigError: the folder can't be written, or is not each node's own.

    Comm: a broadcast, and as :class:`LocalCheckpoints`.
    """
    if not config.folder:
        return LocalSaves()
    name = shared.from_first(lambda: local_name(log.folder))
    found = LocalCheckpoints(config.folder, name, place, saving, log.say)
    if not found.copies:
        log.say("local checkpoints have no copy: all processes are on one node")
    return LocalSaves(found, config.every, starts.went_on_from)
