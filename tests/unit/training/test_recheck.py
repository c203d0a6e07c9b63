"""What follows from what ranks make of the same rows."""

import math

import pytest

from megalite.distributed.launch import Launch
from megalite.errors import PersistentFault
from megalite.training.faults import Fault, FaultConfig
from megalite.training.learner import Learner
from megalite.training.recheck import Trial, judged
from megalite.training.watchdog.heartbeat import Heartbeat
from tests.unit.training.runs import Run


def trial(rank: int, bits: int, norm: float = 0.5) -> Trial:
    return Trial(f"rank {rank}", norm, (((bits,),), (bits,)))


def why(*trials: Trial) -> str:
    with pytest.raises(PersistentFault) as caught:
        judged("computed again", trials)
    return str(caught.value)


def test_all_alike_are_right_unless_nothing_is_finite():
    assert judged("again", [trial(0, 1), trial(1, 1)]).kind == "right"
    assert judged("again", [trial(0, 1, math.nan), trial(1, 1, math.nan)]).kind == "undecided"


def test_the_majority_is_right():
    said = why(trial(0, 1), trial(1, 2), trial(2, 1), trial(3, 1))
    assert "rank 1 computes wrongly, the other 3 agree" in said
    said = why(trial(0, 1), trial(1, 2), trial(2, 1), trial(3, 3), trial(4, 1))
    assert "rank 1; rank 3 computes wrongly, the other 3 agree" in said


def test_without_a_majority_only_a_gradient_that_is_far_off_tells():
    assert "likely wrong" not in why(trial(0, 1, 0.5), trial(1, 2, 0.6))
    assert "rank 1 is likely wrong, by its gradient" in why(trial(0, 1, 0.5), trial(1, 2, 50.0))
    assert "rank 0 is likely wrong" in why(trial(0, 1, math.nan), trial(1, 2, 0.5))
    assert "likely wrong" not in why(trial(0, 1, math.nan), trial(1, 2, math.nan))


def test_a_step_that_is_not_finite_is_computed_again(tmp_path):
    """By a process alone, which has nobody to ask; the gradients are no numbers each time."""
    fault = FaultConfig(kind="nan", step=2, phase="reduce")

    def arm(step: int, learner: Learner) -> None:
        if step == 1:
            learner.heartbeat = Heartbeat(Fault(fault, Launch()))
        learner.heartbeat.step = step

    run = Run(tmp_path).go(3, arm, recheck={"suspicious": True})
    assert "step 2: computed again (its gradients are not finite): the same result" in run.log
    assert "this layout has no other data-parallel rank" in run.log
