import pytest
import torch

from megalite.stages.rlhf.rewards import (
    advantages_and_returns,
    clip_scores,
    last_index,
    token_rewards,
)


def _case(seed: int, rows: int = 5, length: int = 13):
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randn(rows, length, generator=generator)
    values = torch.randn(rows, length, generator=generator)
    mask = torch.zeros(rows, length, dtype=torch.bool)
    for row in range(rows):
        first = int(torch.randint(0, length - 1, (), generator=generator))
        last = int(torch.randint(first + 1, length + 1, (), generator=generator))
        mask[row, first:last] = True
    return rewards, values, mask


def _gae_loop(rewards, values, mask, discount, decay):
    advantages = torch.zeros_like(rewards)
    for row in range(rewards.shape[0]):
        following, carried = 0.0, 0.0
        for position in reversed(mask[row].nonzero().flatten().tolist()):
            delta = rewards[row, position] + discount * following - values[row, position]
            carried = delta + discount * decay * carried
            advantages[row, position] = carried
            following = values[row, position]
    return advantages


@pytest.mark.parametrize("length", [1, 2, 7, 8, 33])
@pytest.mark.parametrize(("discount", "decay"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.5, 0.0)])
def test_the_scan_equals_the_loop(length, discount, decay):
    rewards, values, mask = _case(length, length=max(length, 2))
    ours, returns = advantages_and_returns(rewards, values, mask, discount, decay)
    assert torch.allclose(ours, _gae_loop(rewards, values, mask, discount, decay), atol=1e-5)
    assert torch.equal(returns, ours + values * mask)


def test_without_discount_or_decay_returns_are_the_reward_to_go():
    rewards, values, mask = _case(3)
    _, returns = advantages_and_returns(rewards, values, mask, 1.0, 1.0)
    to_go = (rewards * mask).flip(1).cumsum(1).flip(1) * mask
    assert torch.allclose(returns, to_go, atol=1e-5)


def test_the_penalty_is_minus_the_coefficient_times_the_kl_of_each_token():
    mask = torch.tensor([[False, True, True, True, False]])
    kl = torch.tensor([[9.0, 0.5, -0.25, 1.0, 9.0]])
    rewards = token_rewards(kl, torch.tensor([2.0]), mask, 0.1)
    assert torch.allclose(rewards, torch.tensor([[0.0, -0.05, 0.025, 1.9, 0.0]]))


def test_the_score_is_added_at_the_last_response_token_only():
    mask = torch.tensor([[False, True, True, False], [True, False, False, False]])
    rewards = token_rewards(torch.zeros(2, 4), torch.tensor([3.0, -1.0]), mask, 0.1)
    assert rewards.tolist() == [[0, 0, 3, 0], [-1, 0, 0, 0]]
    assert last_index(mask).tolist() == [2, 0]


def test_a_row_without_response_gets_no_reward():
    mask = torch.zeros(1, 4, dtype=torch.bool)
    assert token_rewards(torch.ones(1, 4), torch.ones(1), mask, 0.1).abs().sum() == 0


def test_scores_are_clipped_to_the_limit():
    scores = torch.tensor([-9.0, 2.0, 9.0])
    assert clip_scores(scores, 5).tolist() == [-5, 2, 5]
    assert clip_scores(scores, 0) is scores
