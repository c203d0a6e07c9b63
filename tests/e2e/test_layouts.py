"""A layout that doesn't fit is refused by every process before anything starts."""

import re

import pytest

from tests.e2e.conftest import megalite

pytestmark = pytest.mark.dist

CASES = {  # the tiny model has a global batch of 4; tests/unit/engine has all messages
    "processes": (["--parallel.tp", "3"], ["tp 3 must be 2, the number of processes", "tp 2"]),
    "schedule": (
        ["--parallel.pp", "2", "--train.micro_batch_size", "4"],
        ["gives 1 micro-batches", "gpipe", "tp 2"],
    ),
}


def test_torchrun_ends_with_the_exit_code_of_a_layout_that_does_not_fit(work):
    more, says = CASES["processes"]
    run = work.new_run()
    done = megalite(*work.pretrain_words(run, *more), processes=2)
    assert done.returncode != 0
    codes = set(re.findall(r"exitcode\s*: (-?\d+)", done.stderr))  # torchrun's report
    assert "2" in codes
    assert codes <= {"2", "-15"}  # torchrun ends the others at the first's end
    for part in [*says, "layouts that fit"]:
        assert part in done.stderr
    assert not run.exists()


@pytest.mark.parametrize("kind", CASES)
def test_every_process_refuses_a_layout_that_does_not_fit_with_those_that_do(work, pair, kind):
    more, says = CASES[kind]
    run = work.new_run()
    words = work.pretrain_words(run, *more)
    for said in pair.run(2, "tests.dist.start_jobs:refusal", words=words, last=[]):
        assert said.startswith("2 --")
        for part in [*says, "layouts that fit"]:
            assert part in said
    assert not run.exists()
