"""Recipes at --scale: a ramp, dropout, Adafactor and initial values by role, in two layouts.

``--recipes all``, or a part of names, takes every recipe of them for 30 steps of its stage.
"""

import pytest

from benchmarks.recipe_runs import losses, make_text, scale_to, words_of
from megalite.config.bases import recipe_names
from megalite.distributed.launch import Launch
from tests.dist import stage_jobs

LAYOUTS = {
    "tp2 pp2": ["--parallel.tp", "2", "--parallel.pp", "2"],
    "tp2 fsdp2": ["--parallel.tp", "2", "--parallel.shard", "2"],
}
SHORT = {"bloom-176b": 6, "t5-small": 3}  # steps
LONG = 30


def pytest_generate_tests(metafunc):
    told = metafunc.config.getoption("--recipes")
    chosen = dict.fromkeys([n for n in recipe_names() if told in (n, "all") or told in n], LONG)
    metafunc.parametrize(("name", "steps"), (chosen if told else SHORT).items())


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    make_text(folder)
    return folder


def test_a_scaled_recipe_has_the_losses_of_one_process(cluster, text, tmp_path, name, steps):
    scale = scale_to(name, steps)
    stage_jobs.run_stage(Launch(), words_of(name, scale, text, tmp_path / "one"))
    expected = losses(tmp_path / "one")
    assert len(expected) >= 3
    for layout, more in LAYOUTS.items():
        run = tmp_path / layout.replace(" ", "-")
        cluster.run(
            4, "tests.dist.stage_jobs:run_stage", words=words_of(name, scale, text, run, *more)
        )
        assert losses(run) == pytest.approx(expected, rel=1e-5), layout
