"""GRPO and its relatives answer and learn alike in every layout, in every structure."""

import pytest

from tests.dist import jobs, policy_jobs

STEPS = 3
LAYOUTS = {
    "fsdp2": (2, {"shard": 2}),
    "dp2": (2, {}),
    "tp2 pp2": (4, {"tp": 2, "pp": 2}),
}
CLOCKS = ("rollout_s", "rollout_gap")


@pytest.fixture(scope="module")
def alone():
    return policy_jobs.train(jobs.ALONE, {}, STEPS)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_steps_are_those_of_one_process(cluster, alone, layout):
    """Answers token for token, groups of other prompts in place of equal ones among them."""
    processes, sizes = LAYOUTS[layout]
    found = cluster.run(processes, "tests.dist.policy_jobs:train", layout=sizes, steps=STEPS)
    for family, (rows, rollouts) in alone.items():
        for metrics, _ in (one[family] for one in found):
            for row, wanted in zip(metrics, rows, strict=True):
                for name in wanted.keys() - set(CLOCKS):
                    close = pytest.approx(wanted[name], rel=1e-4, abs=1e-5)
                    assert row[name] == close, (family, name)
        for number, answers in enumerate(rollouts):
            written = [one[family][1][number] for one in found]
            same = (answers.get(i, own) == own for part in written for i, own in part.items())
            assert all(same), (family, number)
            assert set(answers) <= {i for part in written for i in part}


FORMS = ("compute", "nf4")  # of a base's matrices


@pytest.fixture(scope="module")
def adapted_alone():
    return policy_jobs.train_adapted(jobs.ALONE, {}, 5, FORMS)


def test_adapters_learn_as_in_one_process_and_are_their_own_reference(cluster, adapted_alone):
    """The loss is a mean of advantages around 1 that cancel, so it is compared in their unit."""
    processes, sizes = LAYOUTS["tp2 pp2"]
    job = "tests.dist.policy_jobs:train_adapted"
    for found in cluster.run(processes, job, layout=sizes, steps=5, forms=FORMS):
        for form, (rows, rollouts) in adapted_alone.items():
            metrics, written = found[form]
            for row, wanted in zip(metrics, rows, strict=True):
                assert row["loss"] == pytest.approx(wanted["loss"], abs=1e-5), form
                for name in ("reward", "kl", "entropy"):
                    assert row[name] == pytest.approx(wanted[name], abs=1e-5), (form, name)
            for answers, own in zip(rollouts, written, strict=True):
                assert all(answers[number] == one for number, one in own.items()), form


def test_what_is_compared_happens(alone):
    rows = {family: metrics for family, (metrics, _) in alone.items()}
    assert any(row["redrawn_groups"] for row in rows["llama"])
    assert any(0 < row["ended"] < 1 for row in rows["t5"])
    assert any(row["clip_fraction"] > 0 for row in rows["t5"])
    assert all(0 < row["reward"] < 1 for metrics in rows.values() for row in metrics)
