"""The loss of the largest logit, against autograd of its definition."""

import pytest
import torch
from torch.nn import functional

from megalite.ops import LossOptions, cross_entropy, linear_cross_entropy

OPTIONS = [
    {"max_z_loss": 0.3},
    {"max_z_loss": 0.3, "label_smoothing": 0.2, "z_loss": 0.1, "logit_scale": 0.7},
    {"max_z_loss": 0.3, "logit_cap": 3.0},
]


def defined(logits: torch.Tensor, labels: torch.Tensor, options: LossOptions) -> torch.Tensor:
    logits = logits * options.logit_scale
    if options.logit_cap:
        logits = options.logit_cap * torch.tanh(logits / options.logit_cap)
    smoothing = options.label_smoothing
    plain = functional.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    beside = options.z_loss * torch.logsumexp(logits, -1) ** 2
    beside = beside + options.max_z_loss * logits.max(-1).values ** 2
    return torch.where(labels == -100, 0.0, plain + beside)


@pytest.mark.parametrize("values", OPTIONS)
def test_loss_and_gradients_are_those_of_the_definition(values):
    options, generator = LossOptions(**values), torch.Generator().manual_seed(2)
    hidden = torch.randn(11, 6, generator=generator, dtype=torch.float64)
    weight = torch.randn(37, 6, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 37, (11,), generator=generator)
    labels[::4] = -100
    share = torch.rand(11, generator=generator)
    found = []
    for loss in (
        lambda h, w: (defined(h @ w.T, labels, options) * share).sum(),
        lambda h, w: (cross_entropy(h @ w.T, labels, options) * share).sum(),
        lambda h, w: linear_cross_entropy(h, w, labels, share, None, options),
    ):
        leaves = [x.clone().requires_grad_() for x in (hidden, weight)]
        value = loss(*leaves)
        value.backward()
        found.append((value.detach(), *(leaf.grad for leaf in leaves)))
    for theirs in found[1:]:
        for one, other in zip(found[0], theirs, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-6, atol=1e-7)
