"""Recipes at --scale: a ramp, dropout, Adafactor and initial values by role, in two layouts.

``--recipes all``, or a part of names, takes every recipe of them for 30 steps of its stage; with
``--junitxml FILE`` the largest differences are properties of its test.
"""

import pytest

from benchmarks.recipe_runs import make_text, scale_to, words_of
from megalite.config.bases import recipe_names
from megalite.distributed.launch import Launch
from tests.dist import stage_jobs

LAYOUTS = {
    "tp2 pp2": ["--parallel.tp", "2", "--parallel.pp", "2"],
    "tp2 fsdp2": ["--parallel.tp", "2", "--parallel.shard", "2"],
}
LONG = 30  # steps
# T5 1.0 has ReLU, and rounding, a CPU's own, decides on which side of 0 an input is; Adafactor then
# moves a unit that had no gradient as far as any other: the suite holds t5-small with GELU.
SHORT = {"bloom-176b": 6, "t5-small": 3}  # steps
LOSSES, NORMS = ("loss", "value_loss"), ("grad_norm", "critic_grad_norm")
FIRST = 3  # steps whose norms are compared
BOUNDS = {"loss": 1e-5, "value_loss": 1e-5, "grad_norm": 1e-4, "critic_grad_norm": 1e-4}
# With GELU T5 11B is within the bounds above.
OF_RELU = {"loss": 1e-4, "grad_norm": 1e-2}


def pytest_generate_tests(metafunc):
    told = metafunc.config.getoption("--recipes")
    chosen = [name for name in recipe_names() if told == "all" or told in name]
    steps = dict.fromkeys(chosen, LONG) if told else SHORT
    metafunc.parametrize(("name", "steps"), steps.items())


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    make_text(folder)
    return folder


def is_relu(name: str) -> bool:
    return name.startswith("t5-") and not name.startswith("t5-v1.1-")


def farthest(found, alone) -> dict[str, float]:
    """Relative differences, the largest of each loss and of the first steps' gradient norms.

    Adam's update has no scale of its gradient, so that losses alone don't tell a wrong one. The
    loss of PPO's policy is a mean of advantages around 1 that cancel: its unit is at least 1.
    """
    assert len(found) == len(alone)
    far = {}
    for key in LOSSES + NORMS:
        ours, theirs = ([row[key] for row in rows if key in row] for rows in (found, alone))
        assert len(ours) == len(theirs)
        least = 1.0 if key == "loss" and "value_loss" in alone[0] else 0.0
        pairs = list(zip(ours, theirs, strict=True))[: FIRST if key in NORMS else None]
        if pairs:
            far[key] = max(abs(x - y) / max(least, abs(y)) for x, y in pairs)
    return far


def test_a_scaled_recipe_learns_as_in_one_process(
    cluster, text, tmp_path, name, steps, record_property
):
    scale = scale_to(name, steps)
    changes = ["--model.activation", "gelu"] if is_relu(name) and steps != LONG else []
    words = words_of(name, scale, text, tmp_path / "one", *changes)
    alone, _ = stage_jobs.run_stage(Launch(), words)
    assert len(alone) >= FIRST
    for layout, more in LAYOUTS.items():
        run = tmp_path / layout.replace(" ", "-")
        words = words_of(name, scale, text, run, *changes, *more)
        (found, _), *_ = cluster.run(4, "tests.dist.stage_jobs:run_stage", words=words)
        far = farthest(found, alone)
        record_property(layout, far)
        assert far
        bounds = OF_RELU if is_relu(name) and not changes else BOUNDS
        assert all(one <= bounds[key] for key, one in far.items()), (layout, far)
