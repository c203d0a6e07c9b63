"""Local checkpoints in the training loop: when one is due, and which one a start goes on from."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from torch import Tensor

from megalite.training.checkpoint.load import load
from megalite.training.checkpoint.local.checkpoints import LocalCheckpoints
from megalite.training.checkpoint.manager import CheckpointManager
from megalite.training.checkpoint.manifest import Facts
from megalite.training.checkpoint.retry import Retry

Found = tuple[Path, Facts, Callable[[dict[str, Tensor]], None]]  # and what loads tensors from it


class LocalSaves:
    """What a run does with local checkpoints; nothing without any."""

    def __init__(
        self,
        checkpoints: LocalCheckpoints | None = None,
        every: int = 0,
        went_on: Callable[[int], None] = lambda _step: None,
    ) -> None:
        """Save ``every`` so many steps; ``went_on`` is told the step that a start goes on from."""
        self._checkpoints, self._every = checkpoints, every
        self._went_on, self._retry = went_on, Retry()
        self._is_wanted = False

    @property
    def is_busy(self) -> bool:
        """Whether one is being written."""
        return self._checkpoints is not None and self._checkpoints.is_busy

    def find(
        self,
        shared: CheckpointManager,
        tensors: dict[str, Tensor],
        why_not: Callable[[Facts], str],
        refuse: Callable[[Facts], None],
    ) -> Found | None:
        """The checkpoint to go on from: the newest whole one, local or shared; None without any.

        Args:
            shared: the checkpoints on storage that all nodes share.
            tensors: that are to be loaded.
            why_not: says of a checkpoint's facts why it can't be taken; empty if it can.
            refuse: raises where a local one is of a run that is not this one.

        Raises:
            CheckpointError: there are shared ones, but none is intact and can be taken.

        Comm: as :meth:`CheckpointManager.latest` and :meth:`LocalCheckpoints.newest`.
        """
        local = self._checkpoints
        if local is not None:

            def why_not_local(facts: Facts) -> str:
                reason = why_not(facts)
                if not reason:
                    refuse(facts)
                return reason

            self.wait(0)
            step = shared.newest_step()
            found = local.newest(step, tensors, why_not_local)
            if found is not None:
                self._went_on(found[1]["step"])
                return *found, local.load
            if step >= 0:
                local.say(f"the nodes have no whole local checkpoint later than step {step}")
        taken = shared.latest(why_not)
        self._went_on(taken[1]["step"] if taken is not None else 0)
        return None if taken is None else (*taken, partial(load, taken[0]))

    def is_due(self, step: int, is_busy: bool) -> bool:
        """Whether to save after a step; not while a process still writes a checkpoint."""
        if self._checkpoints is None:
            return False
        self._is_wanted |= step % self._every == 0
        return self._is_wanted and not is_busy and step >= self._retry.step

    def begin(self, step: int, tensors: Mapping[str, Tensor], facts: Facts) -> None:
        """Begin to save; see :meth:`LocalCheckpoints.save`."""
        assert self._checkpoints is not None
        self._is_wanted = False
        if self.wait(step):
            self._checkpoints.save(step, tensors, facts)

    def wait(self, step: int) -> bool:
        """Wait for the save that is under way; whether none has failed, which is said."""
        self._is_wanted = False
        if self._checkpoints is None:
            return True
        is_whole = self._checkpoints.wait()
        if is_whole:
            self._retry.worked()
        else:
            self._retry.failed(step)
        return is_whole

    def end(self) -> None:
        """Delete them: the shared checkpoint is as new."""
        if self._checkpoints is not None:
            self._checkpoints.wait()
            self._checkpoints.clear()
