"""Launches, bytes and operations of a step on paper are those of the operators that run."""

import pytest
import torch

from benchmarks.ledger import Ledger
from benchmarks.traffic import CASES, RATES, Case, entries_of, report, times_of
from benchmarks.workload import batch_of
from megalite.training.metrics.flops import step_operations
from tests.dist import models


def noted(run) -> list[tuple[str, float, float]]:
    """What ``run`` launches on the meta device: name, bytes, operations."""
    with Ledger(lambda start: pytest.fail("attention")) as ledger, torch.device("meta"):
        run()
    return [(entry.name, entry.bytes_, entry.flops) for entry in ledger.entries]


def test_a_product_reads_its_factors_once_and_a_view_nothing():
    a, b = torch.empty(4, 8, device="meta"), torch.empty(16, 8, device="meta")
    assert noted(lambda: (a @ b.t()).view(2, 32)) == [
        ("mm", 4.0 * (32 + 128 + 64), 2.0 * 4 * 8 * 16)
    ]


def test_what_is_written_over_is_read_only_where_it_is_used():
    a, row = torch.empty(4, 8, device="meta"), torch.empty(1, 8, device="meta")
    assert noted(lambda: a.add_(1.0)) == [("add_", 2 * 128.0, 0.0)]
    assert noted(lambda: a.copy_(row.expand(4, 8))) == [("copy_", 128.0 + 32.0, 0.0)]
    assert noted(lambda: torch.mul(a, 2.0, out=torch.empty_like(a))) == [("mul", 2 * 128.0, 0.0)]


def test_rows_that_are_looked_up_are_read_alone():
    table, rows = torch.empty(1000, 8, device="meta"), torch.zeros(3, dtype=torch.int64)
    rows = rows.to("meta")
    (entry,) = noted(lambda: torch.nn.functional.embedding(rows, table))
    assert entry == ("embedding", 2 * 3 * 32.0 + 3 * 8, 0.0)


@pytest.mark.parametrize("name", ["llama", "bloom", "t5"])
def test_operations_are_those_that_hfu_counts(name):
    config = models.config(name).model_copy(update={"dropout": 0.0, "attention_dropout": 0.0})
    batch = batch_of(config, 2, 11)
    entries = entries_of(config, batch, torch.bfloat16)
    assert sum(entry.flops for entry in entries) == step_operations(config, batch).hardware
    assert {"attention", "attention_backward"} <= {entry.name for entry in entries}


def test_a_faster_memory_makes_what_it_binds_faster_and_no_product():
    config = models.config("llama").model_copy(update={"dropout": 0.0, "attention_dropout": 0.0})
    case, entries = (
        Case("", 8, 128, 2),
        entries_of(config, batch_of(config, 8, 128), torch.bfloat16),
    )
    slow, fast = (times_of(case, entries, 10**9, RATES[gpu]) for gpu in ("v100", "a100"))
    ratio = RATES["a100"].memory / RATES["v100"].memory
    for name in ("clip and AdamW, a step", "FSDP2: gradients to fp32 and added"):
        assert slow[name] / fast[name] == pytest.approx(ratio)


@pytest.mark.parametrize(("model", "least"), [("llama-7b", 0.60), ("bloom-7b1", 0.55)])
def test_a_step_on_paper_keeps_an_a100_busy(model: str, least: float):
    """MFU before communication, of 8 A100s."""
    (case,) = (case for case in CASES if case.model == model)
    assert report(case, "a100", 0) >= least
