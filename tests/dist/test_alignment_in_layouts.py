"""Steps of DPO, GRPO and PPO, full or by adapters, are one process's in every layout.

Each layout has some of the methods and families, which other files have not compared in it.
"""

import pytest

from tests.dist import alignment_jobs, jobs

STEPS = 3
FULL, ADAPTED = False, True
LAYOUTS = {
    "tp2": (2, {"tp": 2}),
    "pp2": (2, {"pp": 2}),
    "fsdp2": (2, {"shard": 2}),
    "dp2": (2, {}),
    "tp2 pp2": (4, {"tp": 2, "pp": 2}),
}
CASES = {
    "tp2": [("ppo", "t5", FULL), ("grpo", "chatglm2-tiny", ADAPTED)],
    "pp2": [("ppo", "chatglm2-tiny", FULL), ("grpo", "llama", ADAPTED)],
    "fsdp2": [("ppo", "llama", ADAPTED), ("grpo", "t5", ADAPTED)],
    "dp2": [("ppo", "t5", ADAPTED), ("dpo", "chatglm2-tiny", ADAPTED)],
    "tp2 pp2": [("ppo", "chatglm2-tiny", ADAPTED), ("dpo", "t5", ADAPTED)],
}


@pytest.fixture(scope="module")
def alone():
    every = dict.fromkeys(case for cases in CASES.values() for case in cases)
    return alignment_jobs.train(jobs.ALONE, {}, list(every), STEPS)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_steps_are_those_of_one_process(cluster, alone, layout):
    processes, sizes = LAYOUTS[layout]
    job = "tests.dist.alignment_jobs:train"
    found = cluster.run(processes, job, layout=sizes, cases=CASES[layout], steps=STEPS)
    for case in CASES[layout]:
        check(alone[case], [one[case] for one in found], case)


def check(wanted, found, case) -> None:
    """The same answers token for token; losses, and what they are made of, within rounding.

    A policy's loss is a mean of advantages around 1 that cancel, and is compared in their unit.
    """
    rows, rollouts = wanted
    names = {"reward", "kl", "entropy", "value_loss", "chosen_reward"}
    for metrics, _ in found:
        for row, expected in zip(metrics, rows, strict=True):
            unit = 1.0 if case[0] != "dpo" else abs(expected["loss"])
            assert row["loss"] == pytest.approx(expected["loss"], abs=1e-5 * unit), case
            for name in names & expected.keys():
                close = pytest.approx(expected[name], rel=1e-5, abs=1e-5)
                assert row[name] == close, (case, name, row[name], expected[name])
    for number, answers in enumerate(rollouts):
        written = [answers_of[number] for _, answers_of in found]
        assert all(answers[i] == own for part in written for i, own in part.items()), case
        assert set(answers) <= {i for part in written for i in part}, case


def test_what_is_compared_happens(alone):
    for (method, _, _), (rows, rollouts) in alone.items():
        assert method != "ppo" or rows[-1]["value_loss"] != rows[0]["value_loss"]
        lengths = {len(answer) for answers in rollouts for answer in answers.values()}
        assert method == "dpo" or len(lengths) > 1
