"""Jobs of runs that look after themselves, in a layout."""

from pathlib import Path

from megalite.distributed.launch import Launch
from tests.unit.training.runs import BATCH, Run, Texts

SPIKE, STEPS = 36, 40
BAD = range((SPIKE - 1) * BATCH, SPIKE * BATCH)


def curves(launch: Launch, folder: str, layout: dict[str, int]) -> tuple[list, list, str]:
    """A run that goes back before a spike, and one that is told to skip the same samples.

    Returns:
        The metrics of each, and what the first said.
    """
    spikes = {"policy": "rollback", "around": 3, "window": 40 * BATCH}
    back = Run(Path(folder) / "back", Texts(BAD), launch=launch, **layout).go(STEPS, spikes=spikes)
    skip = ((BAD.start - 3, BAD.stop + 3),)
    told = Run(Path(folder) / "told", Texts(BAD), launch=launch, **layout).go(STEPS, skip=skip)
    return back.rows, told.rows, back.log
