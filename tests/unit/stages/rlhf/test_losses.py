import itertools
import math

import torch
from torch.nn.functional import logsigmoid

from megalite.stages.rlhf.losses import Clip, policy_terms, ranking_loss, ranking_pairs, value_terms
from megalite.stages.rlhf.whiten import whiten


def _tokens(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(4, 9, generator=generator) < 0.7
    return [torch.randn(4, 9, generator=generator) for _ in range(3)], mask


def test_the_first_update_has_ratio_one_no_kl_no_clipping_and_no_loss():
    (log_probs, _, advantages), mask = _tokens()
    terms = policy_terms(
        log_probs, log_probs.clone(), whiten(advantages, mask), mask, Clip(0.2, 0.2)
    )
    assert torch.equal(terms.ratio, mask.float())
    assert terms.approximate_kl.sum() == 0
    assert terms.clipped.sum() == 0
    assert abs(terms.loss.sum() / mask.sum()) < 1e-6


def test_the_first_updates_gradient_is_the_policy_gradient():
    (log_probs, _, advantages), mask = _tokens(1)
    log_probs.requires_grad_()
    policy_terms(
        log_probs, log_probs.detach(), advantages, mask, Clip(0.2, 0.2)
    ).loss.sum().backward()
    assert torch.allclose(log_probs.grad, -advantages * mask)


def test_policy_clipping_takes_the_larger_loss():
    change = torch.tensor([[math.log(1.5), math.log(0.5), math.log(1.5), math.log(0.5)]])
    advantages = torch.tensor([[1.0, 1.0, -1.0, -1.0]])
    mask = torch.ones(1, 4, dtype=torch.bool)
    terms = policy_terms(change, torch.zeros(1, 4), advantages, mask, Clip(0.2, 0.2))
    assert torch.allclose(terms.loss, torch.tensor([[-1.2, -0.5, 1.5, 0.8]]))
    assert terms.clipped.tolist() == [[1, 0, 0, 1]]


def test_approximate_kl_is_half_the_squared_change():
    mask = torch.tensor([[True, True, False]])
    change = torch.tensor([[0.2, -0.4, 5.0]])
    terms = policy_terms(change, torch.zeros(1, 3), torch.ones(1, 3), mask, Clip(0.2, 0.2))
    assert torch.allclose(terms.approximate_kl, torch.tensor([[0.02, 0.08, 0.0]]))


def test_infinite_log_probs_outside_the_response_leave_the_gradient_finite():
    log_probs = torch.tensor([[0.1, -math.inf]], requires_grad=True)
    mask = torch.tensor([[True, False]])
    old = torch.tensor([[0.1, -math.inf]])
    policy_terms(log_probs, old, torch.ones(1, 2), mask, Clip(0.2, 0.2)).loss.sum().backward()
    assert torch.isfinite(log_probs.grad).all()


def test_value_loss_is_half_the_larger_squared_error():
    mask = torch.ones(1, 3, dtype=torch.bool)
    values, old = torch.tensor([[1.0, 1.0, 0.1]]), torch.zeros(1, 3)
    returns = torch.tensor([[1.0, -1.0, 0.0]])
    loss, clipped = value_terms(values, old, returns, mask, 0.2)
    assert torch.allclose(loss, torch.tensor([[0.5 * 0.64, 0.5 * 4.0, 0.5 * 0.01]]))
    assert clipped.tolist() == [[1, 0, 0]]


def test_ranking_loss_is_the_mean_of_its_pairwise_losses():
    scores = torch.randn(3, 4, generator=torch.Generator().manual_seed(2), requires_grad=True)
    loss = ranking_loss(scores, torch.ones(3, 4, dtype=torch.bool))
    pairs = list(itertools.combinations(range(4), 2))
    expected = sum(-logsigmoid(scores[:, i] - scores[:, j]) for i, j in pairs) / math.comb(4, 2)
    assert torch.allclose(loss, expected)
    gradient = torch.autograd.grad(loss.sum(), scores, retain_graph=True)[0]
    assert torch.allclose(gradient, torch.autograd.grad(expected.sum(), scores)[0], atol=1e-6)


def test_a_shorter_ranking_counts_only_its_own_pairs():
    scores = torch.tensor([[2.0, 1.0, 77.0], [3.0, 2.0, 1.0]])
    valid = torch.tensor([[True, True, False], [True, True, True]])
    loss = ranking_loss(scores, valid)
    assert torch.allclose(loss[0], -logsigmoid(torch.tensor(1.0)))
    difference, kept = ranking_pairs(scores, valid)
    assert difference[kept].tolist() == [1, 1, 2, 1]
