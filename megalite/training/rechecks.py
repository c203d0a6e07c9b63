"""Which steps of a run are computed again, and what is said of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from megalite.errors import PersistentFault, TransientFault
from megalite.training.learner import Learner


class Rechecks:
    """Tells the learners of a run when to compute a step again."""

    def __init__(self, learners: Sequence[Learner]) -> None:
        """Hold the learners."""
        self._learners = learners
        self._config = learners[0].learning.train.recheck

    @contextmanager
    def of_step(self, step: int, bounds: Callable[[], Mapping[str, float]]) -> Iterator[None]:
        """Have a step that is computed inside computed again, if that is due.

        Args:
            step: its number.
            bounds: gives what its metrics are suspicious above.

        Raises:
            MegaliteError: a fault was found; it begins with the step.
        """
        every, is_one = self._config.every, len(self._learners) == 1
        for learner in self._learners:
            learner.recheck.is_due = every > 0 and step % every == 0
            if self._config.suspicious and is_one:  # else metrics are of many updates
                learner.recheck.bounds = bounds()
        try:
            yield
        except (TransientFault, PersistentFault) as fault:
            fault.args = (f"step {step}: {fault}",)
            raise

    def said(self, step: int, say: Callable[[str], None]) -> dict[str, float]:
        """Say what came out of a step that was computed again, and give it as a metric."""
        verdicts = [verdict for learner in self._learners for verdict in learner.recheck.taken()]
        for verdict in verdicts:
            say(f"step {step}: {verdict.words}")
        return {"recheck": max(verdict.code for verdict in verdicts)} if verdicts else {}
