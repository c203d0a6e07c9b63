"""A step never asks the device for a number; what it gives is read later, and is the same.

The meta device stands in for a GPU: it has no numbers, so PyTorch refuses every operation that a
host would have to wait for - reading a number, copying to the host, looking for what is not zero.
"""

import json

import pytest
import torch
from torch.optim import optimizer

from megalite.distributed.mesh import Mesh, ParallelConfig
from megalite.distributed.sums import Counts
from megalite.engine.build import build_model
from megalite.engine.data_parallel import DataParallel
from megalite.engine.model import Task
from megalite.engine.whole import Whole
from megalite.errors import MegaliteError
from megalite.models.outputs import LogProbs, Loss, Values
from megalite.models.transformer import Transformer
from megalite.stages.rlhf.updates import RankingLoss, Rankings
from megalite.training.checkpoint.manager import CheckpointManager
from megalite.training.config import OptimizerConfig, ScheduleConfig, TrainConfig
from megalite.training.learner import TARGETS, Learner, Learning, Update
from megalite.training.loss_scale import GROWTH_STEPS, LARGEST, LEAST, LossScale, ScaleAhead
from megalite.training.metrics.run_log import RunLog
from megalite.training.progress import Progress, StepResult
from megalite.training.trainer import Trainer
from tests.dist import models

NAMES = ("llama", "bloom", "gpt", "t5")


@pytest.fixture
def no_numbers(monkeypatch):
    """PyTorch's fused AdamW takes devices by name; on meta it has shape functions all the same."""
    devices = [*optimizer._get_fused_kernels_supported_devices(), "meta"]
    monkeypatch.setattr(optimizer, "_get_fused_kernels_supported_devices", lambda: list(devices))
    return Mesh.single("meta")


def learner(mesh: Mesh, config, precision: str = "fp32", kind: str = "adamw", **train) -> Learner:
    if mesh.device.type == "meta":
        model = Whole([Transformer(config, mesh)], mesh, DataParallel())
    else:
        model = build_model(config, mesh, ParallelConfig(), seed=1)
    settings = TrainConfig(steps=7, global_batch_size=8, precision=precision, **train)
    optimizer = OptimizerConfig(kind=kind, learning_rate=1e-2)
    return Learner(model, mesh, Learning(settings, optimizer, ScheduleConfig(), 1))


def begin(one: Learner, name: str, number: int, output=Loss) -> Update:
    batch = models.batch(name, number)
    parts = [batch.select(rows) for rows in torch.arange(8).split(4)]
    counts = Counts({TARGETS: batch.num_targets}, one.mesh.dp, one.mesh.device)
    return one.begin([(part, None) for part in parts], lambda s: Task(Loss(s)), counts, number * 8)


CASES = [(name, precision, "adamw") for name in NAMES for precision in ("fp32", "fp16")]


@pytest.mark.parametrize(
    ("name", "precision", "kind"),
    [*CASES, *(("llama", "fp16", kind) for kind in ("adafactor", "lion", "muon"))],
)
def test_steps_wait_for_nothing_until_they_are_read(no_numbers, name, precision, kind):
    one = learner(no_numbers, models.config(name), precision, kind)
    updates = [begin(one, name, number) for number in range(3)]
    with pytest.raises(RuntimeError):
        updates[0].metrics()


def test_a_ranking_step_waits_for_nothing(no_numbers):
    config = models.config("llama").model_copy(update={"head": "value"})
    one, batch = learner(no_numbers, config), models.batch("llama", 0)
    rankings = Rankings(
        torch.arange(8).view(4, 2), torch.full((4, 2), 3), torch.ones(4, 2, dtype=torch.bool)
    )
    counts = Counts({TARGETS: rankings.num_learned}, no_numbers.dp, no_numbers.device)
    items = [(batch, rankings.to("meta"))]
    one.begin(items, lambda scale: Task(Values(), RankingLoss(scale)), counts, 0)


def test_log_probabilities_wait_for_nothing(no_numbers):
    model = Whole([Transformer(models.config("llama"), no_numbers)], no_numbers, DataParallel())
    batch = models.batch("llama", 0).to("meta")
    task = Task(LogProbs(), lambda result, _: (result[0].sum(), {}))
    model.forward_backward([(batch, None)], task)


def test_what_would_wait_is_refused_by_the_stand_in():
    number = torch.ones((), device="meta")
    for wait in (float, bool, torch.Tensor.tolist, torch.Tensor.cpu, torch.nonzero):
        with pytest.raises(RuntimeError):
            wait(number)


def test_the_scale_on_the_device_is_that_of_the_host():
    """Also at both ends of its range and where it is due to grow."""
    flags = [True] * 3 + [False] * (GROWTH_STEPS + 1) + [True] * 2 + [False] * GROWTH_STEPS
    for start in (2.0**16, LARGEST, 2.0**4 * LEAST):
        host = LossScale(start, good_steps=GROWTH_STEPS - 2)
        ahead = ScaleAhead.of(host, torch.device("cpu"))
        for is_bad in flags:
            ahead = ahead.after(torch.tensor(float(is_bad)))
            host.update(not is_bad, "fp16", 10**9, 0)
            host.bad_share = 0.0
            assert (float(ahead.value), float(ahead.good_steps)) == (host.value, host.good_steps)


def test_a_learner_that_is_read_late_makes_the_same_curve():
    """Overflows among its steps; their scale is known on the device alone."""
    curves, parameters = [], []
    for behind in (0, 2):
        one, metrics, begun = learner(Mesh.single(), models.config("llama"), "fp16"), [], []
        one.scale.value = 2.0**66  # squares of fp32 gradients overflow beyond 2^63
        for number in range(8):
            begun.append(begin(one, "llama", number))
            while len(begun) > behind:
                metrics.append(begun.pop(0).metrics())
        metrics += [update.metrics() for update in begun]
        curves.append([(m["loss"], str(m["grad_norm"]), m["loss_scale"]) for m in metrics])
        parameters.append(torch.cat([p.detach().flatten() for p in one.model.parameters()]))
        assert one.scale.dropped_steps > 0 and one.scale.good_steps > 0
    assert curves[0] == curves[1]
    assert torch.equal(*parameters)


def work_of(one: Learner):
    def work(number: int, _progress: Progress) -> StepResult:
        update = begin(one, "llama", number)
        return StepResult(lambda seconds: {**update.metrics(), "seconds": seconds()})

    return work


def trained(folder, behind: int, **train) -> list[dict]:
    config = models.config("llama")
    one = learner(Mesh.single(), config, log_every=2, **train)
    log = RunLog(folder, True, 7)
    trainer = Trainer([one], log, CheckpointManager(folder / "checkpoints"), every=5)
    trainer.reads_behind = behind  # as on a GPU

    trainer.fit(
        lambda _: range(100), work_of(one), lambda: {"heldout_loss": float(trainer.progress.step)}
    )
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_that_reads_late_writes_the_same_metrics(tmp_path):
    timed = {"step_s", "seconds", "memory_gib", "tokens_per_s"}
    rows = [
        [
            {k: v for k, v in row.items() if k not in timed}
            for row in trained(folder, behind, evaluate_every=4)
        ]
        for folder, behind in ((tmp_path / "a", 0), (tmp_path / "b", 1))
    ]
    assert rows[0] == rows[1]
    assert [row["step"] for row in rows[0]] == list(range(8))


def test_a_run_that_reads_late_ends_at_the_same_bad_step(tmp_path):
    for behind in (0, 1):
        one = learner(Mesh.single(), models.config("llama"), max_bad_steps=3)
        with torch.no_grad():
            next(iter(one.model.parameters())).fill_(float("nan"))
        log = RunLog(tmp_path / str(behind), True, 7)
        trainer = Trainer([one], log, CheckpointManager(tmp_path / str(behind) / "c"), every=0)
        trainer.reads_behind = behind  # as on a GPU
        with pytest.raises(MegaliteError, match="step 3: gradients were not finite for 3 steps"):
            trainer.fit(lambda _: range(9), work_of(one))
