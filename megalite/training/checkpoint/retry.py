"""When a save that failed is tried again."""

FIRST_STEPS, MOST_STEPS = 10, 1000
LAST_PAUSES_S = (1.0, 3.0)  # between the tries of a run's last save


class Retry:
    """Steps until the next try, twice as many after each failure in a row.

    Attributes:
        step: after which the next try is; 0 where nothing failed.
    """

    def __init__(self) -> None:
        """Nothing failed."""
        self.step, self._steps = 0, FIRST_STEPS

    def failed(self, step: int) -> int:
        """A failure was seen in ``step``; gives the step of the next try."""
        self.step = step + self._steps
        self._steps = min(2 * self._steps, MOST_STEPS)
        return self.step

    def worked(self) -> None:
        """A save was written."""
        self.step, self._steps = 0, FIRST_STEPS
