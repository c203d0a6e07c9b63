"""Go back to a checkpoint from before a spike, and leave out the samples around it for ever."""

import time
from functools import partial
from pathlib import Path

from megalite.data.skipping import Ranges, in_words, merged
from megalite.errors import CheckpointError, MegaliteError
from megalite.training.checkpoint.manager import CheckpointManager
from megalite.training.checkpoint.retry import LAST_PAUSES_S
from megalite.training.checkpoint.write_errors import advice_on, reason_of
from megalite.training.folder.skips import NAME, can_go_on, read_skips, write_skips
from megalite.training.progress import Progress


def decide_rollback(
    checkpoints: CheckpointManager, folder: Path, progress: Progress, choices: Ranges, limit: int
) -> str:
    """Decide which samples a run leaves out, and write it into its folder.

    Comm: broadcasts of what the first process reads, and as :meth:`CheckpointManager.has_whole`.

    Args:
        checkpoints: of the run; none is being written.
        folder: of the run.
        progress: after the step with the spike.
        choices: ranges of places that may be left out; the first is taken that a whole checkpoint
            has not learned anything of.
        limit: most decisions of a run.

    Returns:
        What is left out, in words; empty where no whole checkpoint is from before the spike.

    Raises:
        MegaliteError: the limit is reached.
        CheckpointError: it can't be written, in several tries within some seconds.
    """
    entries = checkpoints.from_first(lambda: read_skips(folder))
    if len(entries) >= limit:
        raise MegaliteError(
            f"step {progress.step}: a spike, and the run went back {limit} times, the most that "
            "train.spikes.limit allows: lower --optimizer.learning_rate, look at the data near "
            "this step, or raise the limit"
        )
    for first, end in choices:
        skipped = merged([*progress.skipped, (first, end)])
        if checkpoints.has_whole(partial(can_go_on, wanted=skipped)):
            decided = [*entries, {"first": first, "end": end, "step": progress.step}]
            checkpoints.from_first(partial(_write, folder, decided))
            text = f"samples {in_words(((first, end),))} of the run's order"
            return f"{text} are never learned ({len(decided)} of {limit} times)"
    return ""


def _write(folder: Path, entries: list[dict[str, int]]) -> None:
    """Write what a run leaves out; a disk that is full has some seconds to have room again.

    Raises:
        CheckpointError: it can't be written.
    """
    for pause_s in (*LAST_PAUSES_S, None):
        try:
            write_skips(folder, entries)
            return
        except OSError as error:
            if pause_s is None:
                raise CheckpointError(
                    f"{folder / NAME}: can't be written: {reason_of(error)}: a run goes back "
                    "before a spike when what it leaves out is on the disk: "
                    f"{advice_on(error)}, and start again"
                ) from None
            time.sleep(pause_s)
