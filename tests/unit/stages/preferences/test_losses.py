"""Each loss and its gradients against the formulas of TRL's trainers, restated here.

Source: huggingface/trl v0.24: ``dpo_loss`` of trl/trainer/dpo_trainer.py (sigmoid, ipo), of
kto_trainer.py ``kto_loss``, of orpo_trainer.py ``odds_ratio_loss``, of cpo_trainer.py ``cpo_loss``
(simpo).
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from megalite.data.chat.preferences import Comparison
from megalite.data.example import decoder_example
from megalite.models.batch import IGNORE
from megalite.stages.preferences.config import PreferenceLossConfig
from megalite.stages.preferences.objective import Comparisons, PreferenceLoss, quotients

PROMPT, LENGTHS = 3, (4, 6, 2, 5, 1, 3)  # tokens of each answer, two to a prompt


def trl_dpo(chosen, rejected, ref_chosen, ref_rejected, beta, label_smoothing):
    logits = (chosen - rejected) - (ref_chosen - ref_rejected)
    return (
        -F.logsigmoid(beta * logits) * (1 - label_smoothing)
        - F.logsigmoid(-beta * logits) * label_smoothing
    )


def trl_ipo(chosen, rejected, ref_chosen, ref_rejected, beta):
    logits = (chosen - rejected) - (ref_chosen - ref_rejected)
    return (logits - 1 / (2 * beta)) ** 2


def trl_kto(chosen, rejected, ref_chosen, ref_rejected, kl, beta):
    chosen_losses = 1 - F.sigmoid(beta * (chosen - ref_chosen - kl))
    rejected_losses = 1 - F.sigmoid(beta * (kl - (rejected - ref_rejected)))
    return torch.cat((1.2 * chosen_losses, 0.7 * rejected_losses))


def trl_orpo(chosen, rejected, beta):
    log_odds = (chosen - rejected) - (
        torch.log1p(-torch.exp(chosen)) - torch.log1p(-torch.exp(rejected))
    )
    return -chosen - beta * F.logsigmoid(log_odds)


def trl_simpo(chosen, rejected, beta, gamma, label_smoothing):
    logits = (chosen - rejected) - gamma / beta
    return (
        -F.logsigmoid(beta * logits) * (1 - label_smoothing)
        - F.logsigmoid(-beta * logits) * label_smoothing
    )


def answer(length: int, first: int):
    """A prompt and an answer of some tokens, each of which is a target."""
    tokens = np.arange(first, first + PROMPT + length - 1)
    labels = np.where(np.arange(len(tokens)) < PROMPT - 1, IGNORE, tokens + 1)
    return decoder_example(tokens, labels)


def comparisons(places=(0, 1, 2)) -> Comparisons:
    pairs = [Comparison([answer(n, 10 * i) for i, n in enumerate(LENGTHS[2 * p :][:2])])
             for p in places]  # fmt: skip
    numbers = torch.linspace(-20, -5, 6).numpy()
    return Comparisons.of(
        [(pair, numbers[2 * p : 2 * p + 2]) for p, pair in zip(places, pairs, strict=True)], places
    )


def rows(made: Comparisons, seed: int = 0) -> torch.Tensor:
    """Log-probabilities of rows, 0 where there is no target."""
    labels = made.answers.batch.labels
    drawn = -3 * torch.rand(labels.shape, generator=torch.Generator().manual_seed(seed))
    return (drawn.double() * (labels != IGNORE)).requires_grad_()


def sums_of(log_probs: torch.Tensor, takes_mean: bool) -> list[torch.Tensor]:
    """Better and worse answers' log-probabilities, each [3], cut out row by row."""
    found, at = [], 0
    for length in LENGTHS:
        found.append(log_probs[0, at + PROMPT - 1 : at + PROMPT - 1 + length].sum())
        found[-1] = found[-1] / length if takes_mean else found[-1]
        at += PROMPT - 1 + length
    return [torch.stack(found[0::2]), torch.stack(found[1::2])]


CASES = {
    "dpo": (
        {},
        lambda c, r, rc, rr: trl_dpo(c, r, rc, rr, 0.1, 0.0),
    ),
    "dpo smoothed": (
        {"beta": 0.3, "label_smoothing": 0.2},
        lambda c, r, rc, rr: trl_dpo(c, r, rc, rr, 0.3, 0.2),
    ),
    "dpo of means": (
        {"beta": 1.5, "length_normalised": True},
        lambda c, r, rc, rr: trl_dpo(c, r, rc, rr, 1.5, 0.0),
    ),
    "ipo": ({"beta": 0.2}, lambda c, r, rc, rr: trl_ipo(c, r, rc, rr, 0.2)),
    "ipo of means": (
        {"beta": 0.2, "length_normalised": True},
        lambda c, r, rc, rr: trl_ipo(c, r, rc, rr, 0.2),
    ),
    "kto": (
        {"good_weight": 1.2, "bad_weight": 0.7},
        lambda c, r, rc, rr: trl_kto(c, r, rc, rr, 0.4, 0.1),
    ),
    "orpo": ({"beta": 0.25}, lambda c, r, *_: trl_orpo(c, r, 0.25)),
    "simpo": ({"margin": 0.7}, lambda c, r, *_: trl_simpo(c, r, 2.0, 0.7, 0.0)),
    "simpo smoothed": (
        {"beta": 3.0, "margin": 0.5, "label_smoothing": 0.1},
        lambda c, r, *_: trl_simpo(c, r, 3.0, 0.5, 0.1),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_loss_and_its_gradients_are_those_of_trl(case):
    values, trl = CASES[case]
    config = PreferenceLossConfig(kind=case.split()[0], **values)
    made = comparisons()
    log_probs = rows(made)
    loss, metrics = PreferenceLoss(config, 1 / made.num_learned(config), kl=0.4)(
        (log_probs, log_probs.detach()), made
    )
    (gradient,) = torch.autograd.grad(loss, log_probs)
    gradient = gradient * (made.answers.batch.labels != IGNORE)  # the head reads no others
    chosen, rejected = sums_of(log_probs, config.takes_mean)
    references = made.answers.reference.double() / (
        torch.tensor(LENGTHS) if config.takes_mean else 1
    )
    losses = trl(chosen, rejected, references[0::2], references[1::2])
    (wanted,) = torch.autograd.grad(losses.mean(), log_probs)
    assert loss.item() == pytest.approx(losses.mean().item(), rel=1e-6)
    assert (gradient - wanted).norm() <= 1e-6 * wanted.norm()
    found = quotients({name: float(value) for name, value in metrics.items()})
    base = references if config.needs_reference else torch.zeros(6)
    rewards = config.strength * torch.stack((chosen - base[0::2], rejected - base[1::2])).detach()
    assert found["accuracy"] == pytest.approx(float((rewards[0] > rewards[1]).double().mean()))
    assert found["margin"] == pytest.approx(float((rewards[0] - rewards[1]).mean()), rel=1e-5)
    assert found["chosen_reward"] == pytest.approx(float(rewards[0].mean()), rel=1e-5)
    assert found["rejected_reward"] == pytest.approx(float(rewards[1].mean()), rel=1e-5)


def test_a_better_answers_own_loss_stands_beside_a_pairs():
    made = comparisons()
    log_probs = rows(made)
    plain, with_term = (
        PreferenceLoss(PreferenceLossConfig(sft_coefficient=weight), 1 / 3)(
            (log_probs, log_probs), made
        )
        for weight in (0.0, 0.5)
    )
    own = -sums_of(log_probs, takes_mean=True)[0].mean()
    assert torch.allclose(with_term[0], plain[0] + 0.5 * own)
    assert torch.allclose(with_term[1]["sft_loss"], own.detach())


def test_an_answer_that_is_certain_has_finite_odds():
    log_probs = torch.zeros(1, 1, dtype=torch.float32, requires_grad=True)
    made = comparisons()
    config = PreferenceLossConfig(kind="orpo")
    loss, _ = PreferenceLoss(config, 1.0)((rows(made).float() * 0 + log_probs, log_probs), made)
    loss.backward()
    assert loss.isfinite()
    assert log_probs.grad.isfinite().all()


def test_micro_batches_change_nothing():
    whole, halves = comparisons(), [comparisons((0, 1)), comparisons((2,))]
    log_probs, config = rows(whole), PreferenceLossConfig()
    cut = len(halves[0].answers.batch.labels[0])
    loss = PreferenceLoss(config, 1 / 3)
    expected, counts = loss((log_probs, log_probs), whole)
    parts = [log_probs[:, :cut], log_probs[:, cut:]]
    found = [loss((part, part), half) for part, half in zip(parts, halves, strict=True)]
    assert torch.allclose(expected, found[0][0] + found[1][0])
    assert torch.allclose(counts["margins"], found[0][1]["margins"] + found[1][1]["margins"])
