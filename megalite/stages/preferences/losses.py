"""Losses of preferences, one a pair or an answer, of log-probabilities of whole answers."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

LARGEST_LOG = -1e-6  # of a probability that an odds ratio can be taken of


def dpo_loss(difference: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Direct preference optimisation.

    Args:
        difference: [M] fp32, log-ratio of policy and reference of the better answer less that of
            the worse, in nats.
        beta: strength of the reference.
        label_smoothing: probability that a pair is the wrong way round ("conservative DPO").

    Returns:
        [M] fp32.

    Source: Rafailov et al. 2023, arXiv:2305.18290, eq. 7; smoothing: one author's note on
    cDPO, ericmitchell.ai/cdpo.pdf.
    """
    return _smoothed(beta * difference, label_smoothing)


def ipo_loss(difference: Tensor, tau: float) -> Tensor:
    """Identity preference optimisation: the difference of log-ratios is drawn to 1 / (2 tau).

    Args:
        difference: as in :func:`dpo_loss`.
        tau: strength of the reference.

    Source: Azar et al. 2023, arXiv:2310.12036, eq. 17.
    """
    return (difference - 1 / (2 * tau)) ** 2


def simpo_loss(
    difference: Tensor, beta: float, margin: float, label_smoothing: float = 0.0
) -> Tensor:
    """Simple preference optimisation, without a reference.

    Args:
        difference: [M] fp32, mean log-probability of a token of the better answer less that of the
            worse.
        beta: scale of the difference.
        margin: gamma, what the better answer must be ahead by.
        label_smoothing: as in :func:`dpo_loss`.

    Source: Meng et al. 2024, arXiv:2405.14734, eq. 6.
    """
    return _smoothed(beta * difference - margin, label_smoothing)


def odds_ratio_loss(better: Tensor, worse: Tensor) -> Tensor:
    """What ORPO adds to the better answer's own loss, before its weight.

    Args:
        better: [M] fp32, mean log-probability of a token of the better answer.
        worse: of the worse one.

    Source: Hong et al. 2024, arXiv:2403.07691, eq. 4 and 7.
    """
    return -logsigmoid(_log_odds(better) - _log_odds(worse))


def kto_loss(log_ratio: Tensor, is_good: Tensor, beta: float, kl: float) -> Tensor:
    """Kahneman-Tversky optimisation, before the weights of good and bad answers.

    Args:
        log_ratio: [A] fp32 of policy and reference, in nats.
        is_good: [A] bool.
        beta: strength of the reference.
        kl: the reference point, at least 0: the mean log-ratio of answers to other prompts.

    Source: Ethayarajh et al. 2024, arXiv:2402.01306, eq. 8.
    """
    gain = beta * (log_ratio - kl)
    return 1 - torch.sigmoid(torch.where(is_good, gain, -gain))


def _smoothed(gain: Tensor, share: float) -> Tensor:
    return -(1 - share) * logsigmoid(gain) - share * logsigmoid(-gain)


def _log_odds(log_prob: Tensor) -> Tensor:
    """log(p / (1 - p)) of a probability's logarithm."""
    bounded = log_prob.clamp(max=LARGEST_LOG)
    return bounded - torch.log(-torch.expm1(bounded))
