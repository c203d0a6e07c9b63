import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from megalite.distributed.mesh import Axis
from megalite.stages.rlhf.whiten import moments, whiten

GOLDEN = torch.tensor([[0.0508, 0.4381, 0.8254], [1.2127, 1.6, 1.9873], [2.3746, 2.7619, 3.1492]])
VALUES = torch.tensor([[1.2, 1.3, 1.4], [1.5, 1.6, 1.7], [1.8, 1.9, 2.0]])


def test_whitening_keeps_the_mean_and_uses_the_biased_variance():
    white = whiten(VALUES, torch.ones(3, 3, dtype=torch.bool), shift_mean=False)
    assert torch.allclose(white, GOLDEN, atol=5e-5)


def test_whitened_advantages_have_zero_mean_and_unit_variance():
    white = whiten(VALUES, torch.ones(3, 3, dtype=torch.bool))
    assert abs(white.mean()) < 1e-6
    assert abs(white.var(unbiased=False) - 1) < 1e-5


def test_masked_values_do_not_count_and_become_zero():
    mask = torch.tensor([[True, True, False]])
    white = whiten(torch.tensor([[1.0, 3.0, 1e6]]), mask)
    assert torch.allclose(white, torch.tensor([[-1.0, 1.0, 0.0]]), atol=1e-6)


def test_equal_values_whiten_to_finite_numbers():
    assert whiten(torch.ones(2, 2), torch.ones(2, 2, dtype=torch.bool)).abs().max() == 0


def test_an_empty_mask_gives_zero_moments():
    mean, variance = moments(torch.ones(2, 2), torch.zeros(2, 2, dtype=torch.bool))
    assert mean == 0
    assert variance == 0


def _whiten_rank(rank: int, path: str, results) -> None:
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    rows = slice(0, 1) if rank == 0 else slice(1, 3)
    mask = torch.ones(3, 3, dtype=torch.bool)
    mask[0, 2] = False
    white = whiten(
        VALUES[rows], mask[rows], Axis("dp", 2, rank, dist.group.WORLD), shift_mean=False
    )
    results.put((rank, white.tolist()))
    dist.destroy_process_group()


@pytest.mark.dist
def test_two_ranks_with_uneven_rows_whiten_by_the_moments_of_the_whole_batch(tmp_path):
    context = mp.get_context("spawn")
    results = context.Queue()
    mp.spawn(_whiten_rank, args=(str(tmp_path / "rendezvous"), results), nprocs=2)
    parts = dict(results.get() for _ in range(2))
    mask = torch.ones(3, 3, dtype=torch.bool)
    mask[0, 2] = False
    whole = whiten(VALUES, mask, shift_mean=False)
    assert torch.allclose(torch.tensor(parts[0] + parts[1]), whole, rtol=1e-6)
