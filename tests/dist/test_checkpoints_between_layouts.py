"""A checkpoint of one layout goes on in any other, optimizer state included."""

from itertools import permutations

import pytest

from tests.dist import jobs

LAYOUTS = {
    "1": (1, {}),
    "tp2": (2, {"tp": 2}),
    "pp2": (2, {"pp": 2}),
    "fsdp2": (2, {"shard": 2}),
    "tp2 pp2": (4, {"tp": 2, "pp": 2}),
}
SAVED_AT, FURTHER = 3, 3


def run(cluster, layout: str, job: str, **arguments):
    processes, sizes = LAYOUTS[layout]
    arguments |= {"layout": sizes, "steps": SAVED_AT, "further": FURTHER}
    if processes == 1:
        return getattr(jobs, job)(jobs.ALONE, **arguments)
    results = cluster.run(processes, f"tests.dist.jobs:{job}", **arguments)
    assert all(result == results[0] for result in results)
    return results[0]


@pytest.fixture(scope="module")
def saved(cluster, tmp_path_factory):
    """A checkpoint folder of each layout and model, and the losses that followed there."""
    made = {}

    def get(layout: str, model: str):
        if (layout, model) not in made:
            folder = tmp_path_factory.mktemp("saved")
            losses = run(cluster, layout, "train_and_save", model=model, folder=str(folder))
            made[layout, model] = folder, losses
        return made[layout, model]

    return get


@pytest.mark.parametrize(
    ("source", "target", "model"),
    [(*pair, ("llama", "t5")[n % 2]) for n, pair in enumerate(permutations(LAYOUTS, 2))],
)
def test_losses_go_on_as_in_the_layout_that_saved(cluster, saved, source, target, model):
    folder, expected = saved(source, model)
    losses = run(cluster, target, "load_and_train", model=model, folder=str(folder))
    assert losses == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_layout_goes_on_bit_for_bit(cluster, saved, layout):
    folder, expected = saved(layout, "llama")
    assert run(cluster, layout, "load_and_train", model="llama", folder=str(folder)) == expected
