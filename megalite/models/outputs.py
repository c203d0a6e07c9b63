"""What a caller asks of a model."""

from dataclasses import dataclass

from torch import Tensor

Scale = float | Tensor  # a number, or an fp32 scalar of the device


@dataclass(frozen=True)
class Loss:
    """``scale * sum over targets of weight * cross-entropy``: an fp32 scalar.

    Logits are never whole. ``scale`` is usually 1 / the number of targets of the global batch.
    """

    scale: Scale = 1.0
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    max_z_loss: float = 0.0


@dataclass(frozen=True)
class Logits:
    """The logits, [B, S, V]; with ``last_row`` of each sequence's last row only, [B, 1, V]."""

    last_row: bool = False


LAST_ROW = Logits(last_row=True)


@dataclass(frozen=True)
class LogProbs:
    """``(log_probs, entropy)`` of the labels, each fp32 [B, S], 0 where there is no target.

    Logits are never whole; the entropy carries no gradient.
    """

    temperature: float = 1.0


@dataclass(frozen=True)
class Judgement:
    """``(log_probs, is_likeliest)`` of the labels, each fp32 [B, S], 0 where there is no target.

    ``is_likeliest`` is 1 where no token is likelier than the label. Nothing has a gradient.
    """


@dataclass(frozen=True)
class Values:
    """The scalar head's value of each row, fp32 [B, S]."""


@dataclass(frozen=True)
class Hidden:
    """The last hidden states, normalised, [B, S, D]."""


@dataclass(frozen=True)
class Kept:
    """Only what a cache keeps of the batch: the result is of no use."""


Output = Loss | Logits | LogProbs | Judgement | Values | Hidden | Kept
