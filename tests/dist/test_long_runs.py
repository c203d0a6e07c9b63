"""Runs that look after themselves decide alike on all ranks, and keep the promised curve."""

import pytest
import torch

from tests.dist.long_run_jobs import SPIKE


def test_a_run_goes_back_on_all_ranks_as_if_told_to_skip(cluster, tmp_path):
    options = {"folder": str(tmp_path), "layout": {"pp": 2, "shard": 2}}
    for back, told, said in cluster.run(4, "tests.dist.long_run_jobs:curves", **options):
        assert back == told
        assert f"step {SPIKE}: going back before the spike" in said


def test_a_run_goes_on_in_the_middle_of_its_ramp(cluster, tmp_path):
    """Bit for bit in one layout, and with the losses of another layout that it comes from."""
    layouts = [{"pp": 2, "tp": 2}, {"shard": 2, "replicate": 2}]
    job = "tests.dist.long_run_jobs:ramps"
    for runs in cluster.run(4, job, folder=str(tmp_path), layouts=layouts):
        (whole, means), (same, same_means), (moved, moved_means) = runs
        assert means.keys() == same_means.keys() == moved_means.keys() != set()
        for name, mean in means.items():
            assert torch.equal(mean, same_means[name])
            torch.testing.assert_close(mean, moved_means[name], rtol=1e-4, atol=1e-5)
        assert [row["batch_size"] for row in whole] == [4, 4, 4, 4, 8, 8, 12, 12]
        assert same == whole
        for one, other in zip(whole, moved, strict=True):
            assert one.keys() == other.keys()
            assert [other[k] for k in SHOWN] == pytest.approx([one[k] for k in SHOWN], rel=1e-5)


SHOWN = ("loss", "learning_rate", "batch_size")
LAYOUTS = {
    "tp": ("glm", {"tp": 4, "sequence_parallel": True}),
    "stages that share": ("gpt", {"pp": 2, "tp": 2}),
    "replicas of shards": ("t5", {"replicate": 2, "shard": 2}),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_copies_that_differ_are_named_and_made_equal(cluster, name: str):
    model, layout = LAYOUTS[name]
    job = "tests.dist.long_run_jobs:copies_after_training"
    answers = cluster.run(4, job, model=model, layout=layout)
    assert all(answer == answers[0] for answer in answers)
    untouched, changed, again = answers[0]
    assert untouched == again == []
    assert changed
    assert all(wrong == (3,) if right else len(wrong) == 2 for _, wrong, right in changed)
    if name == "stages that share":
        assert any(name.endswith("embedding.weight.exp_avg") for name, _, _ in changed)


def test_drift_of_one_rank_stops_all_unsaved_or_is_made_good(cluster, tmp_path):
    job, layout = "tests.dist.long_run_jobs:drifting", {"tp": 2}
    for stopped, resumed, resynced, clean in cluster.run(
        2, job, folder=str(tmp_path), layout=layout
    ):
        assert "step 6: copies differ: model.decoder.norm.weight: ranks 0, 1 have diff" in stopped
        assert "nothing of this step is saved" in stopped
        assert resumed == clean
        assert "they are equal again" in resynced


@pytest.mark.parametrize("layout", [{"pp": 2}, {"shard": 2}], ids=str)
def test_a_rank_that_sleeps_is_named_though_all_steps_take_as_long(cluster, tmp_path, layout):
    job = "tests.dist.long_run_jobs:straggling"
    for said, rows in cluster.run(2, job, folder=str(tmp_path), layout=layout):
        (line,) = [line for line in said.splitlines() if "slower than the others" in line]
        assert line.startswith("step 4: rank 1 (")
        assert "more in data" in line
        assert rows[3]["stragglers"] == 1
        assert rows[3]["slowest_rank"] == 1
        assert rows[3]["slowest_own_s"] > rows[3]["own_s"]
