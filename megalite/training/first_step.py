"""What is said at the end of a start's first step: how long it took to come there, by part."""

from collections.abc import Callable, Mapping, Sequence

import torch

from megalite.distributed.beginning import Beginning
from megalite.distributed.collectives import gather_stacked
from megalite.distributed.mesh import Mesh
from megalite.distributed.transfer import moved

LONGER_S = 1.0  # a part that takes another process longer by this is said of it


class FirstStep:
    """Tells the seconds of each part when the first step has ended; nothing where none count."""

    def __init__(
        self,
        beginning: Beginning | None = None,
        mesh: Mesh | None = None,
        note: Callable[[dict[str, float]], None] = lambda _seconds: None,
    ) -> None:
        """Wait for the first step.

        Args:
            beginning: has this process's seconds.
            mesh: the processes that train together.
            note: is given this process's seconds by part.
        """
        self._beginning, self._mesh = beginning or Beginning(), mesh or Mesh.single()
        self._note = note

    def look(self) -> list[str]:
        """What there is to say; nothing but for the first step.

        Comm: an all-gather of 7 numbers over the world, once.
        """
        own = self._beginning.end()
        if not own:
            return []
        mesh = self._mesh
        values = moved(torch.tensor(list(own.values()), dtype=torch.float64), mesh.device)
        rows = gather_stacked(values, mesh.world).tolist()
        self._note(own)
        seconds = dict(zip(own, rows, strict=True))
        return [in_words(seconds, mesh.world.rank, mesh.ranks() or [0])]


def in_words(seconds: Mapping[str, Sequence[float]], place: int, ranks: Sequence[int]) -> str:
    """One process's seconds by part, and the longest of another where that is much longer.

    Args:
        seconds: of each part, of all processes.
        place: of the process among them.
        ranks: of all, in the run.
    """
    parts = []
    for part, each in seconds.items():
        slowest = max(range(len(each)), key=each.__getitem__)
        text = f"{part} {each[place]:.1f} s"
        if each[slowest] - each[place] > LONGER_S:
            text += f" (rank {ranks[slowest]}: {each[slowest]:.1f} s)"
        parts.append(text)
    total = sum(each[place] for each in seconds.values())
    return f"the first of this start, {total:.1f} s after it: {', '.join(parts)}"
