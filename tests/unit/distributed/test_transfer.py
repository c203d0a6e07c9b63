"""What goes to a device and comes back: nothing is asked of the device that the host knows."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from megalite.distributed.mesh import Mesh, ParallelConfig
from megalite.distributed.transfer import Reading, Staged, moved
from megalite.engine.build import build_model
from megalite.models.outputs import LogProbs, Loss
from megalite.ops import random
from megalite.ops.vocabulary import IGNORE, labelled_rows
from tests.dist import models


def sparse(number: int = 0):
    """A batch of which some rows have no label."""
    batch = models.batch("llama", number)
    labels = batch.labels.masked_fill(batch.labels % 3 == 0, IGNORE)
    return replace(batch, labels=labels)


def test_labelled_rows_are_found_before_a_batch_leaves_the_host():
    batch = sparse()
    on_device = batch.to("meta")
    assert on_device.rows is not None
    assert on_device.rows.shape == labelled_rows(batch.labels.flatten()).shape
    assert on_device.decoder.mask.start.is_meta
    assert on_device.labels.is_meta


def test_labelled_rows_follow_the_padding():
    batch = sparse()
    known = replace(batch, rows=labelled_rows(batch.labels.flatten()))
    padded = known.padded(batch.decoder.length + 5, 0)
    assert torch.equal(padded.rows, labelled_rows(padded.labels.flatten()))
    assert known.without_targets().rows is None


@pytest.mark.parametrize("output", [Loss(0.1, z_loss=1e-3), LogProbs(0.7)])
def test_known_rows_give_the_same_bits(output):
    batch, results = sparse(), []
    known = replace(batch, rows=labelled_rows(batch.labels.flatten()))
    for one in (batch, known):
        model = build_model(models.config("llama"), Mesh.single(), ParallelConfig(), seed=1)
        result = model.evaluate([one], output)[0]
        results.append(result if isinstance(result, tuple) else (result,))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_another_library_of_functions_rounds_alike_where_rounding_is_not_close():
    """NumPy's logarithm and cosine are not PyTorch's, as a GPU's are not."""
    count = 1 << 19
    ours = random.initial_normal(99, (count,))
    words = torch.stack(
        random.philox(99, torch.arange(count // 4), *(torch.zeros(1, dtype=torch.int64),) * 3), -1
    )
    pairs = ((words.double() + 0.5) * 2.0**-32).view(-1, 2).numpy()
    radius, angle = np.sqrt(-2.0 * np.log(pairs[:, 0])), 2.0 * math.pi * pairs[:, 1]
    theirs = torch.from_numpy(np.stack((radius * np.cos(angle), radius * np.sin(angle)), -1))
    theirs = theirs.flatten()
    is_close = random.rounding_is_close(theirs)
    assert torch.equal(theirs.float()[~is_close], ours[~is_close])
    assert is_close.sum() < 16


def test_values_at_the_edge_of_rounding_are_seen():
    half_way = torch.tensor([1.0 + 2.0**-24, 1.0 + 3 * 2.0**-25], dtype=torch.float64)
    assert random.rounding_is_close(half_way * (1.0 + 2.0**-50)).tolist() == [True, False]


def test_staged_copies_keep_what_was_there():
    tensor = torch.ones(3)
    staged = Staged({"a": tensor})
    tensor.zero_()
    assert staged.wait()["a"].tolist() == [1.0, 1.0, 1.0]


def test_numbers_of_a_device_come_back_by_name():
    reading = Reading(("loss", "tokens"), torch.tensor([0.5, 3.0], dtype=torch.float64))
    assert reading.numbers() == {"loss": 0.5, "tokens": 3.0}
    assert moved(torch.ones(2), "cpu").tolist() == [1.0, 1.0]
