"""Copies of parameters and optimizer state that are no longer equal, bit for bit."""

from collections.abc import Callable, Sequence
from typing import Literal

from megalite.engine.copies import Copies
from megalite.errors import MegaliteError
from megalite.training.learner import Learner

SHOWN = 3


class Drift:
    """Compares the copies of what some models learn with, and acts where they differ."""

    def __init__(self, learners: Sequence[Learner], policy: Literal["stop", "resync"]) -> None:
        """Hold the models.

        Args:
            learners: of this process.
            policy: what is done about copies that differ.
        """
        self._learners, self._policy = learners, policy
        self._copies: list[Copies] = []

    def check(self, step: int, say: Callable[[str], None]) -> None:
        """Compare all copies; a process alone has none.

        Comm: see :meth:`Copies.differences`.

        Args:
            step: that is done.
            say: is told what was made equal.

        Raises:
            MegaliteError: copies differ, and the policy is to stop; it names tensor and rank.
        """
        if self._learners[0].mesh.world.size == 1:
            return
        tensors = [learner.tensors() for learner in self._learners]
        if not self._copies:
            self._copies = [Copies(own, self._learners[0].mesh) for own in tensors]
        for copies, own in zip(self._copies, tensors, strict=True):
            found = copies.differences(own)
            if not found:
                continue
            more = f"; and {len(found) - SHOWN} more" * (len(found) > SHOWN)
            text = f"step {step}: copies differ: {'; '.join(map(str, found[:SHOWN]))}{more}"
            if self._policy == "stop":
                raise MegaliteError(
                    f"{text}: nothing of this step is saved; start again from the newest "
                    "checkpoint, without the host of that rank if it comes again"
                )
            copies.make_equal(own, found)
            say(f"{text}: they are equal again, all as most were")
