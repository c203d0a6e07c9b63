"""How likely a model finds given targets: sums over all processes, the same in every layout."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from megalite.data.example import Example, collate
from megalite.data.loader import Dataset, passes_over
from megalite.distributed.sums import all_reduce_sum, sum_count
from megalite.engine.model import Model
from megalite.errors import DataError
from megalite.models.batch import IGNORE, Batch
from megalite.models.outputs import Judgement

PASSES = 16  # forward passes whose results are held together
MakeBatch = Callable[[Sequence[Example], Sequence[int]], Batch]
Numbers = dict[str, float]


def measure_text(model: Model, dataset: Dataset[Example], make: MakeBatch, size: int) -> Numbers:
    """Loss in nats a target, perplexity, and share of targets that no token is likelier than.

    Args:
        model: is measured.
        dataset: samples, each of which counts once.
        make: makes a batch of some of them and their numbers.
        size: samples of a forward pass.

    Raises:
        DataError: no sample has a target.

    Comm: forward passes, and all-reduces of three numbers over dp.
    """
    mesh = model.mesh
    passes = passes_over(len(dataset), size, mesh.dp.rank, mesh.dp.size)
    loss = right = targets = 0.0
    for at in range(0, len(passes), PASSES):
        batches = []
        for places in passes[at : at + PASSES]:
            batch = make([dataset[place] for place in places or [0]], places or [0])
            batches.append((batch if places else batch.without_targets()).to(mesh.device))
        for batch, (log_probs, is_likeliest) in zip(
            batches, model.evaluate(batches, Judgement()), strict=True
        ):
            loss -= float(log_probs.double().sum())
            right += float(is_likeliest.double().sum())
            targets += batch.num_targets
    loss, right, targets = (sum_count(x, mesh.dp, mesh.device) for x in (loss, right, targets))
    if not targets:
        raise DataError("none of the samples has a target: there is nothing to measure")
    mean = loss / targets
    perplexity = math.exp(mean) if mean < 700 else math.inf
    return {
        "loss": mean,
        "perplexity": perplexity,
        "accuracy": right / targets,
        "targets": targets,
    }


def judge(model: Model, examples: Sequence[Example], size: int) -> Tensor:
    """How likely each example's targets are, and whether each is the likeliest token.

    Args:
        model: is asked.
        examples: in any order; long ones are read first.
        size: examples of a forward pass.

    Returns:
        [n, 2] fp64: the sum of the targets' log-probabilities in nats, and 1 where no token is
        likelier than any target, else 0.

    Comm: forward passes, and an all-reduce of the result over dp.
    """
    mesh = model.mesh
    order = sorted(range(len(examples)), key=lambda number: -_rows(examples[number]))
    sums = torch.zeros(len(examples), 2, dtype=torch.float64)
    for places in passes_over(len(order), size, mesh.dp.rank, mesh.dp.size):
        own = [order[place] for place in places]
        batch = collate([examples[number] for number in own or order[:1]], own or order[:1])
        found = model.evaluate([batch.to(mesh.device)], Judgement())[0]
        log_probs, is_likeliest = (one.cpu() for one in found)
        missed = ((batch.labels != IGNORE) & (is_likeliest == 0)).any(-1)
        both = torch.stack((log_probs.double().sum(-1), (~missed).double()), -1)
        sums[own] = both[: len(own)]
    return all_reduce_sum(sums.to(mesh.device), mesh.dp).cpu()


def _rows(example: Example) -> int:
    return max(len(example), example.encoder_length)
