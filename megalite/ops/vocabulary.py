"""The statistics of a row of logits whose vocabulary is split over processes."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from megalite.distributed.collectives import gather_stacked
from megalite.distributed.mesh import Axis
from megalite.errors import ShapeError
from megalite.ops.backends import kernels

IGNORE = -100


@dataclass(frozen=True)
class VocabularySlice:
    """Which slice of the vocabulary this process has.

    Attributes:
        axis: processes that have the other slices.
        offset: number of the first token here.
        size: tokens in the whole vocabulary.
    """

    axis: Axis
    offset: int
    size: int


@dataclass(frozen=True)
class LossOptions:
    """How a row of logits becomes a loss.

    Attributes:
        label_smoothing: the share of the target that is uniform over the vocabulary.
        z_loss: factor of lse^2, which keeps logits from drifting.
        max_z_loss: factor of the largest logit's square (Baichuan 2), alike.
        logit_scale: logits are multiplied by it first.
        logit_cap: then they become cap tanh(logits / cap); 0 is no cap.
        vocabulary: the slice of it that is here; None is all.
        rows: int64, numbers of the rows with a label, of whoever knows them; None: they are looked
            for, and the host waits for a GPU.
    """

    label_smoothing: float = 0.0
    z_loss: float = 0.0
    max_z_loss: float = 0.0
    logit_scale: float = 1.0
    logit_cap: float = 0.0
    vocabulary: VocabularySlice | None = None
    rows: Tensor | None = None

    @property
    def own_slice(self) -> VocabularySlice:
        """The vocabulary's slice that is here, once it is known."""
        assert self.vocabulary is not None
        return self.vocabulary

    def slice(self, width: int) -> VocabularySlice:
        """The vocabulary's slice, ``width`` tokens being here."""
        return self.vocabulary or VocabularySlice(Axis("tp"), 0, width)


def labelled_rows(labels: Tensor) -> Tensor:
    """Numbers of the rows of ``labels``, int64 [T], that have one; the host waits for a GPU."""
    return (labels != IGNORE).nonzero()[:, 0]


def cap_slope(capped: Tensor, cap: float) -> Tensor | None:
    """Derivative of capped logits by those before the cap; None where there is none."""
    return None if not cap else (capped / cap).square_().neg_().add_(1.0)


def scale_and_cap(logits: Tensor, scale: float, cap: float) -> Tensor:
    """Write ``scale logits``, capped where ``cap`` is not 0, over logits of at least fp32."""
    if scale != 1.0:
        logits *= scale
    return logits.div_(cap).tanh_().mul_(cap) if cap else logits


@dataclass(frozen=True)
class RowStatistics:
    """Of logits [T, V]: all fp32 [T], over the whole vocabulary.

    Attributes:
        tops: largest logit of each slice of the vocabulary, [tp, T].
        lse: log of the sum of exponentials.
        target: logit of the label, 0 where there is none.
        mean: mean of the logits.
        weighted: softmax-weighted mean of the logits.
        top: the largest logit.
    """

    tops: Tensor
    lse: Tensor
    target: Tensor
    mean: Tensor
    weighted: Tensor
    top: Tensor


def row_statistics(logits: Tensor, labels: Tensor, vocabulary: VocabularySlice) -> RowStatistics:
    """Statistics of local logits [T, V/tp] fp32 for labels int64 [T] (global numbers).

    Comm: one all-gather of [5, T] fp32 over the slice's axis.
    """
    local = _local_statistics(logits, labels, vocabulary.offset)
    return _combine(gather_stacked(local, vocabulary.axis), vocabulary.size)


def _local_statistics(logits: Tensor, labels: Tensor, offset: int) -> Tensor:
    """Largest, sum of exponentials, target, sum and weighted sum of each row: fp32 [5, T]."""
    ops = kernels(logits)
    if ops is not None and logits.shape[1]:
        found: Tensor = ops.logit_statistics(logits.contiguous(), labels.contiguous(), offset)
        return found
    top = logits.amax(-1) if logits.shape[1] else logits.new_full(logits.shape[:1], -math.inf)
    finite = torch.where(torch.isneginf(top), 0.0, top)
    exponentials = torch.exp(logits - finite[:, None])
    return torch.stack(
        (
            top,
            exponentials.sum(-1),
            local_target(logits, labels, offset),
            logits.sum(-1),
            (exponentials * logits).sum(-1),
        )
    )


def _combine(parts: Tensor, size: int) -> RowStatistics:
    """Statistics of whole rows from those of the slices, [5, tp, T]."""
    tops, sums, targets, totals, weighted = parts  # each [tp, T]
    top = tops.amax(0)
    share = torch.exp(tops - top)
    sum_exponentials = (sums * share).sum(0)
    return RowStatistics(
        tops=tops,
        lse=top + sum_exponentials.log(),
        target=targets.sum(0),
        mean=totals.sum(0) / size,
        weighted=(weighted * share).sum(0) / sum_exponentials,
        top=top,
    )


def local_target(logits: Tensor, labels: Tensor, offset: int) -> Tensor:
    """The logit of each label that is in this slice, else 0: [T]."""
    place = labels - offset
    here = (place >= 0) & (place < logits.shape[1])
    if logits.shape[1] == 0:
        return logits.new_zeros(logits.shape[0])
    value = logits.gather(1, place.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
    return torch.where(here, value, 0.0)


def add_at_labels(gradient: Tensor, labels: Tensor, offset: int, amount: Tensor) -> None:
    """gradient[t, label_t - offset] += amount_t where the label is in this slice; in place."""
    place = labels - offset
    here = ((place >= 0) & (place < gradient.shape[1])).nonzero()[:, 0]
    gradient[here, place[here]] += amount[here]


def largest_places(logits: Tensor) -> Tensor:
    """Place of the largest of each row's logits, the first of equal ones: [T, V/tp] to [T]."""
    return (
        logits.argmax(-1) if logits.shape[1] else logits.new_zeros(len(logits), dtype=torch.int64)
    )


def check_labels(labels: Tensor, rows: int, size: int, where: str) -> None:
    """Refuse labels of a wrong shape or, on a CPU, out of the vocabulary.

    Raises:
        ShapeError: it names the first bad label.
    """
    if labels.dtype != torch.int64 or tuple(labels.shape) != (rows,):
        raise ShapeError(
            f"{where} labels: must be int64 [{rows}], came {labels.dtype} {list(labels.shape)}"
        )
    if labels.device.type != "cpu":
        return
    bad = ((labels < 0) & (labels != IGNORE)) | (labels >= size)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise ShapeError(
            f"{where} labels: must be {IGNORE} or in [0, {size}), came {int(labels[row])} "
            f"in row {row}"
        )
