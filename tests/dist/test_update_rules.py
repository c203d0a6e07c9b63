"""Adafactor, Lion and Muon don't care where they run: every layout against one process."""

from functools import cache

import pytest

from tests.dist import jobs

STEPS = 3
RULES = {
    "t5": {"kind": "adafactor", "learning_rate": 0.02, "adafactor": {"factor_from": 4}},
    "palm": {
        "kind": "adafactor",
        "learning_rate": 0.02,
        "adafactor": {"factor_from": 0, "momentum": 0.9, "clip": 0.0, "decay_exponent": 2.0},
    },
    "lion": {"kind": "lion", "learning_rate": 1e-3},
    "muon": {"kind": "muon", "learning_rate": 3e-3, "muon": {"products": "fp32"}},
    "muon in bf16": {"kind": "muon", "learning_rate": 3e-3, "muon": {"products": "bf16"}},
}
LAYOUTS = {
    "1": (1, {}),
    "tp3 uneven heads": (3, {"tp": 3}),
    "hsdp": (4, {"replicate": 2, "shard": 2}),
    "tp2 fsdp2": (4, {"tp": 2, "shard": 2}),
    "tp2 pp2": (4, {"tp": 2, "pp": 2}),
}
TRAINED = [
    ("llama", "tp3 uneven heads"),
    ("llama", "hsdp"),
    ("llama", "tp2 fsdp2"),
    ("t5", "tp2 pp2"),
]
MOVES = [("1", "tp2 pp2"), ("tp2 fsdp2", "tp3 uneven heads")]
SAVED_AT, FURTHER = 2, 2


def run(cluster, function: str, layout: str, **arguments):
    processes, sizes = LAYOUTS[layout]
    if processes == 1:
        return [getattr(jobs, function)(jobs.ALONE, layout=sizes, **arguments)]
    return cluster.run(processes, f"tests.dist.jobs:{function}", layout=sizes, **arguments)


@cache
def alone(model: str):
    return jobs.train_with_rules(jobs.ALONE, model, {}, STEPS, RULES)


@pytest.mark.parametrize(("model", "layout"), TRAINED)
def test_losses_and_parameters_are_those_of_one_process(cluster, model, layout):
    expected = alone(model)
    arguments = {"model": model, "steps": STEPS, "rules": RULES}
    for result in run(cluster, "train_with_rules", layout, **arguments):
        for name, (losses, weights) in result.items():
            assert losses == pytest.approx(expected[name][0], rel=1e-5), name
            for key, value in weights.items():
                # the gradient of a key's bias is 0 up to rounding; bf16 rounds at other borders
                if key.endswith("key.bias") or name == "muon in bf16":
                    continue
                theirs = expected[name][1][key]
                # the sign of what is 0 up to rounding is either one: one step of Lion's each time
                few = 0.002 if name == "lion" else 0.0
                differ = (value - theirs).abs() > 1e-4 * theirs.abs().max() + 1e-6
                assert differ.double().mean() <= few, (name, key)


@pytest.mark.parametrize(("source", "target"), MOVES)
def test_a_checkpoint_goes_on_in_another_layout(cluster, tmp_path, source, target):
    steps = {"model": "llama", "steps": SAVED_AT, "further": FURTHER}
    cases = {
        rule: {**steps, "folder": str(tmp_path / rule), **RULES[rule]}
        for rule in ("t5", "lion", "muon")
    }
    expected = run(cluster, "of_each", source, job="train_and_save", cases=cases)[0]
    for found in run(cluster, "of_each", target, job="load_and_train", cases=cases):
        for rule, losses in found.items():
            assert losses == pytest.approx(expected[rule], rel=1e-5), rule
