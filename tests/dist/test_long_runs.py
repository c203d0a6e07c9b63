"""Runs that look after themselves decide alike on all ranks, and keep the promised curve."""

from tests.dist.long_run_jobs import SPIKE


def test_a_run_goes_back_on_all_ranks_as_if_told_to_skip(cluster, tmp_path):
    options = {"folder": str(tmp_path), "layout": {"pp": 2, "shard": 2}}
    for back, told, said in cluster.run(4, "tests.dist.long_run_jobs:curves", **options):
        assert back == told
        assert f"step {SPIKE}: going back before the spike" in said
