"""The loss curve does not care where it ran: every layout against one process."""

from functools import cache

import pytest

from tests.dist import jobs
from tests.dist.models import MODELS
from tests.dist.same_training import check_same_training

STEPS = 6
SEQUENCE = {"sequence_parallel": True}
ONE_BLOCK = {"recompute": "full", "recompute_blocks": 1}
LAYOUTS = {
    "tp2": (2, {"tp": 2}),
    "tp3 uneven heads": (3, {"tp": 3}),
    "tp4": (4, {"tp": 4}),
    "pp2": (2, {"pp": 2, "schedule": "1f1b"}),
    "pp2 interleaved": (2, {"pp": 2, "schedule": "interleaved", "chunks_per_rank": 2}),
    "pp3 uneven": (3, {"pp": 3}),
    "dp2": (2, {"replicate": 2}),
    "fsdp2": (2, {"shard": 2, "reshard_after_forward": True}),
    "fsdp4": (4, {"shard": 4}),
    "tp2 pp2": (4, {"tp": 2, "pp": 2}),
    "tp2 fsdp2": (4, {"tp": 2, "shard": 2, "reshard_after_forward": True}),
    "pp2 dp2": (4, {"pp": 2, "replicate": 2}),
    "tp2 pp2 dp2": (8, {"tp": 2, "pp": 2, "replicate": 2}),
}
# Sequence parallelism, recompute and further ways to hold parameters: each on two of the models.
VARIANTS = {
    "tp2 sequence": (2, {"tp": 2, **SEQUENCE}),
    "tp3 sequence, selective recompute": (3, {"tp": 3, "recompute": "selective", **SEQUENCE}),
    "tp4 sequence, full recompute": (4, {"tp": 4, "recompute": "full", **SEQUENCE}),
    "pp2 gpipe, one block recomputes": (2, {"pp": 2, "schedule": "gpipe", **ONE_BLOCK}),
    "fsdp2 kept gathered, selective recompute": (2, {"shard": 2, "recompute": "selective"}),
    "hsdp": (4, {"replicate": 2, "shard": 2}),
    "tp2 pp2 fsdp2 sequence": (8, {"tp": 2, "pp": 2, "shard": 2, **SEQUENCE, **ONE_BLOCK}),
}
# A cut between encoder and decoder; their depths are 3 and 2 in T5, 2 and 3 in BART.
SPLITS = {
    "pp2, encoder 1": (2, {"pp": 2, "encoder_stages": 1}),
    "pp3, encoder 1": (3, {"pp": 3, "encoder_stages": 1}),
    "pp3, encoder 2": (3, {"pp": 3, "encoder_stages": 2}),
    "pp2 interleaved, encoder 2": (2, {**LAYOUTS["pp2 interleaved"][1], "encoder_stages": 2}),
}
NAMES = list(MODELS)
FEW = 2  # processes up to which a layout is tried with every model; larger ones with three each
CASES = [
    *(
        (model, layout)
        for n, (layout, (processes, _)) in enumerate(LAYOUTS.items())
        for model in (NAMES if processes <= FEW else [NAMES[(n + k) % 6] for k in (0, 2, 4)])
    ),
    *((NAMES[(n + k) % 6], layout) for n, layout in enumerate(VARIANTS) for k in (0, 3)),
    *((model, layout) for layout in SPLITS for model in ("t5", "bart")),
]


@cache
def alone(model: str):
    return jobs.train(jobs.ALONE, model, {}, STEPS)


@pytest.mark.parametrize(("model", "layout"), CASES)
def test_losses_norms_and_gradients_are_those_of_one_process(cluster, model: str, layout: str):
    processes, sizes = (LAYOUTS | VARIANTS | SPLITS)[layout]
    results = cluster.run(
        processes, "tests.dist.jobs:train", model=model, layout=sizes, steps=STEPS
    )
    check_same_training(results, alone(model), of_norms=1e-5, floor=1e-9)


@pytest.mark.parametrize(
    ("model", "layout"),
    [("gpt", "tp2 pp2"), ("t5", "tp3 uneven heads"), ("gpt", "tp2 sequence"), ("llama", "fsdp2")],
)
def test_what_recipes_ask_for_is_the_same_everywhere(cluster, model: str, layout: str):
    """Initial values by role, dropout by place and time, shrunk gradients, losses of logits."""
    processes, sizes = (LAYOUTS | VARIANTS)[layout]
    more = {"model": model, "steps": STEPS, "recipe": True}
    results = cluster.run(processes, "tests.dist.jobs:train", layout=sizes, **more)
    plain, recipe = alone(model), jobs.train(jobs.ALONE, layout={}, **more)
    assert recipe[0] != plain[0]
    check_same_training(results, recipe, of_norms=1e-5, floor=1e-8)


def test_the_curve_falls():
    losses, _, _ = alone("llama")
    assert losses[0] == pytest.approx(4.57, abs=0.1)  # log 97
    assert all(x == x for x in losses)
