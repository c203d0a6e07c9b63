"""A checkpoint of one layout goes on in any other, optimizer state included."""

from functools import cache

import pytest

from tests.dist import jobs

LAYOUTS = {
    "1": (1, {}),
    "tp2": (2, {"tp": 2}),
    "pp2": (2, {"pp": 2}),
    "fsdp2": (2, {"shard": 2}),
    "tp2 pp2": (4, {"tp": 2, "pp": 2}),
}
SAVED_AT, FURTHER = 2, 2


def run(cluster, layout: str, job: str, folders: dict[tuple[str, str], str]):
    """What a job gives of layouts that saved, or will, and their models."""
    processes, sizes = LAYOUTS[layout]
    steps = {"steps": SAVED_AT, "further": FURTHER}
    cases = {key: {"model": key[1], "folder": path, **steps} for key, path in folders.items()}
    arguments = {"job": job, "layout": sizes, "cases": cases}
    if processes == 1:
        return jobs.of_each(jobs.ALONE, **arguments)
    results = cluster.run(processes, "tests.dist.jobs:of_each", **arguments)
    assert all(result == results[0] for result in results)
    return results[0]


@pytest.fixture(scope="module")
def saved(cluster, tmp_path_factory):
    """Checkpoint folders of two models in a layout, and the losses that followed there."""

    @cache
    def get(layout: str):
        made = {(layout, model): str(tmp_path_factory.mktemp("saved")) for model in ("llama", "t5")}
        return made, run(cluster, layout, "train_and_save", made)

    return get


@pytest.mark.parametrize("target", LAYOUTS)
def test_losses_go_on_as_in_the_layout_that_saved(cluster, saved, target):
    """From the layout before and the one before that; from the same one bit for bit."""
    names = list(LAYOUTS)
    place = names.index(target)
    moves = [(target, "llama"), (names[place - 1], "llama"), (names[place - 2], "t5")]
    folders = {(source, model): saved(source)[0][source, model] for source, model in moves}
    for key, losses in run(cluster, target, "load_and_train", folders).items():
        expected = saved(key[0])[1][key]
        assert losses == pytest.approx(expected, rel=1e-5), key
        assert losses == expected or key[0] != target, key
