"""Recipes at --scale: a ramp, dropout, Adafactor and initial values by role, in two layouts."""

import pytest

from megalite.distributed.launch import Launch
from tests.dist import stage_jobs
from tests.recipes.text import make_text, pretraining

LAYOUTS = {
    "tp2 pp2": ["--parallel.tp", "2", "--parallel.pp", "2"],
    "tp2 fsdp2": ["--parallel.tp", "2", "--parallel.shard", "2"],
}
SCALES = {"bloom-176b": 5e-5, "t5-small": 3e-6}  # six steps and three


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    make_text(folder)
    return folder


@pytest.mark.parametrize("name", SCALES)
def test_a_scaled_recipe_has_the_losses_of_one_process(cluster, text, tmp_path, name):
    def words(run: str, *more: str) -> list[str]:
        return pretraining(name, SCALES[name], text, tmp_path / run, *more)

    rows, _ = stage_jobs.run_stage(Launch(), words("one"))
    expected = [row["loss"] for row in rows]
    assert len(expected) >= 3
    for layout, more in LAYOUTS.items():
        job = {"words": words(layout.replace(" ", "-"), *more)}
        (found, _), *_ = cluster.run(4, "tests.dist.stage_jobs:run_stage", **job)
        assert [row["loss"] for row in found] == pytest.approx(expected, rel=1e-5)
