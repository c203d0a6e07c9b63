"""The loss curve does not care where it ran: every layout against one process."""

from functools import cache

import pytest

from tests.dist import jobs
from tests.dist.models import MODELS
from tests.dist.same_training import check_same_training

STEPS = 4  # the bounds of RECIPE_TRAIN are before the last
SEQUENCE = {"sequence_parallel": True}
ONE_BLOCK = {"recompute": "full", "recompute_blocks": 1}
INTERLEAVED = {"pp": 2, "schedule": "interleaved", "chunks_per_rank": 2}
# Each model is cut by tp, with and without sequence parallelism, by pp and by shard, and is in
# layouts of two axes; each way to recompute, schedule and way to hold parameters has two or more.
LAYOUTS = {  # processes, layout, models
    "tp2": (2, {"tp": 2}, "gpt glm t5"),
    "tp3 uneven heads": (3, {"tp": 3}, "llama bloom bart"),
    "tp4": (4, {"tp": 4}, "llama t5"),
    "pp2": (2, {"pp": 2, "schedule": "1f1b"}, " ".join(MODELS)),
    "pp2 interleaved": (2, INTERLEAVED, "llama glm t5"),
    "pp3 uneven": (3, {"pp": 3}, "gpt bart"),
    "dp2": (2, {"replicate": 2}, "gpt t5"),
    "fsdp2": (2, {"shard": 2, "reshard_after_forward": True}, "llama bloom t5"),
    "fsdp4": (4, {"shard": 4}, "gpt bart"),
    "tp2 pp2": (4, {"tp": 2, "pp": 2}, "gpt bloom t5"),
    "tp2 fsdp2": (4, {"tp": 2, "shard": 2, "reshard_after_forward": True}, "llama bart"),
    "pp2 dp2": (4, {"pp": 2, "replicate": 2}, "gpt t5"),
    "tp2 pp2 dp2": (8, {"tp": 2, "pp": 2, "replicate": 2}, "glm bart"),
    # Sequence parallelism, recompute and further ways to hold parameters.
    "tp2 sequence": (2, {"tp": 2, **SEQUENCE}, "bloom bart"),
    "tp3 sequence, selective recompute": (
        3,
        {"tp": 3, "recompute": "selective", **SEQUENCE},
        "gpt t5",
    ),
    "tp4 sequence, full recompute": (4, {"tp": 4, "recompute": "full", **SEQUENCE}, "llama glm"),
    "pp2 gpipe, one block recomputes": (2, {"pp": 2, "schedule": "gpipe", **ONE_BLOCK}, "bloom t5"),
    "fsdp2 kept gathered, selective recompute": (
        2,
        {"shard": 2, "recompute": "selective"},
        "glm bart",
    ),
    "hsdp": (4, {"replicate": 2, "shard": 2}, "llama t5"),
    "tp2 pp2 fsdp2 sequence": (
        8,
        {"tp": 2, "pp": 2, "shard": 2, **SEQUENCE, **ONE_BLOCK},
        "gpt t5",
    ),
    # A cut between encoder and decoder; their depths are 3 and 2 in T5, 2 and 3 in BART.
    "pp2, encoder 1": (2, {"pp": 2, "encoder_stages": 1}, "t5 bart"),
    "pp3, encoder 1": (3, {"pp": 3, "encoder_stages": 1}, "t5 bart"),
    "pp3, encoder 2": (3, {"pp": 3, "encoder_stages": 2}, "t5 bart"),
    "pp2 interleaved, encoder 2": (2, {**INTERLEAVED, "encoder_stages": 2}, "t5 bart"),
}


@cache
def alone(model: str, recipe: bool = False):
    return jobs.train(jobs.ALONE, model, {}, STEPS, recipe)


def train(cluster, layout: str, names: list[str], recipe: bool = False) -> list[dict]:
    """What each process of a layout gives of some models."""
    processes, sizes, _ = LAYOUTS[layout]
    cases = {name: {"model": name, "steps": STEPS, "recipe": recipe} for name in names}
    job = "tests.dist.jobs:of_each"
    return cluster.run(processes, job, job="train", layout=sizes, cases=cases)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_norms_and_gradients_are_those_of_one_process(cluster, layout: str):
    names = LAYOUTS[layout][2].split()
    found = train(cluster, layout, names)
    for name in names:
        results = [one[name] for one in found]
        check_same_training(results, alone(name), of_norms=1e-5, floor=1e-9, model=name)


@pytest.mark.parametrize(
    ("model", "layout"),
    [("gpt", "tp2 pp2"), ("t5", "tp3 uneven heads"), ("gpt", "tp2 sequence"), ("llama", "fsdp2")],
)
def test_what_recipes_ask_for_is_the_same_everywhere(cluster, model: str, layout: str):
    """Initial values by role, dropout by place and time, shrunk gradients, losses of logits."""
    results = [one[model] for one in train(cluster, layout, [model], recipe=True)]
    recipe = alone(model, recipe=True)
    assert recipe[0] != alone(model)[0]
    check_same_training(results, recipe, of_norms=1e-5, floor=1e-8)


def test_the_curve_falls():
    losses, _, _ = alone("llama")
    assert losses[0] == pytest.approx(4.57, abs=0.1)  # log 97
    assert all(x == x for x in losses)
