"""Preferences of mixed numbers of answers are learned alike in every layout, in every family."""

import pytest

from tests.dist import jobs, preference_jobs

STEPS = 3
LAYOUTS = {
    "fsdp2": (2, {"shard": 2}),
    "dp2": (2, {}),
    "tp2 pp2": (4, {"tp": 2, "pp": 2}),
}


@pytest.fixture(scope="module")
def alone():
    return preference_jobs.train(jobs.ALONE, {}, STEPS)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_steps_are_those_of_one_process(cluster, alone, layout):
    processes, sizes = LAYOUTS[layout]
    job = "tests.dist.preference_jobs:train"
    for found in cluster.run(processes, job, layout=sizes, steps=STEPS):
        for family, rows in alone.items():
            for row, wanted in zip(found[family], rows, strict=True):
                assert row["loss"] == pytest.approx(wanted["loss"], rel=1e-5), family
                for name in wanted:
                    close = pytest.approx(wanted[name], rel=1e-4, abs=2e-5)
                    assert row[name] == close, (family, name)


FORMS = ("compute", "nf4", "int8")  # of a base's matrices


@pytest.fixture(scope="module")
def adapted_alone():
    return preference_jobs.train_adapted(jobs.ALONE, {}, STEPS, FORMS)


def test_adapters_learn_as_in_one_process_and_are_their_own_reference(cluster, adapted_alone):
    """Also beside a base in 4 or 8 bits."""
    processes, sizes = LAYOUTS["tp2 pp2"]
    job = "tests.dist.preference_jobs:train_adapted"
    for found in cluster.run(processes, job, layout=sizes, steps=STEPS, forms=FORMS):
        for form, rows in adapted_alone.items():
            assert abs(rows[0]["margin"]) < 1e-6 < abs(rows[-1]["margin"])
            for row, wanted in zip(found[form], rows, strict=True):
                assert row["loss"] == pytest.approx(wanted["loss"], rel=1e-5), form


def test_the_reference_point_of_kto_counts(alone):
    """At 0 it would hide what is compared above."""
    assert max(row["kto_kl"] for row in alone["chatglm2-tiny"]) > 0
