"""The loop hands progress to a stage's work, and carries and saves what the work gives back."""

import signal
from collections.abc import Iterator

import pytest

from megalite.distributed.mesh import Mesh, ParallelConfig
from megalite.engine.build import build_model
from megalite.errors import CheckpointError, Stopped
from megalite.training.checkpoint.manager import CheckpointManager
from megalite.training.config import OptimizerConfig, ScheduleConfig, TrainConfig
from megalite.training.learner import Learner, Learning
from megalite.training.metrics.run_log import RunLog
from megalite.training.progress import Progress, StepResult
from megalite.training.stop import Asked
from megalite.training.trainer import Trainer
from tests.dist import models


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """The loop catches signals; later tests must not find them caught."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


def make_trainer(folder, steps: int, **more) -> Trainer:
    mesh, train = Mesh.single(), TrainConfig(steps=steps, global_batch_size=4, **more)
    model = build_model(models.config("llama"), mesh, ParallelConfig(), seed=1)
    learner = Learner(model, mesh, Learning(train, OptimizerConfig(), ScheduleConfig(), 1))
    log = RunLog(folder, True, steps)
    return Trainer([learner], log, CheckpointManager(folder / "checkpoints"), every=2)


def test_work_is_given_the_progress_so_far_and_its_numbers_survive_a_restart(tmp_path):
    seen: list[tuple[str, Progress]] = []

    def work(item: str, progress: Progress) -> StepResult:
        seen.append((item, progress))
        return StepResult({"loss": 1.0}, extra={"coefficient": 0.5 * (progress.step + 1)})

    make_trainer(tmp_path, 2).fit(lambda _progress: "ab", work)
    again = make_trainer(tmp_path, 3)
    assert again.resume() == Progress(2, 8, {"coefficient": 1.0})
    again.fit(lambda _progress: "c", work)
    assert seen == [
        ("a", Progress()),
        ("b", Progress(1, 4, {"coefficient": 0.5})),
        ("c", Progress(2, 8, {"coefficient": 1.0})),
    ]


def test_numbers_that_a_step_does_not_change_are_kept():
    progress = Progress(extra={"a": 1.0, "b": 2.0}).after_step(4, {"b": 3.0})
    assert progress == Progress(1, 4, {"a": 1.0, "b": 3.0})


def test_what_was_asked_elsewhere_is_a_save_or_ends_the_run_with_the_step_saved(tmp_path):
    def work(_item: str, progress: Progress) -> StepResult:
        return StepResult({}, asked=Asked(stop=progress.step == 1, save=progress.step == 0))

    with pytest.raises(Stopped, match="step 2 is saved"):
        make_trainer(tmp_path, 9).fit(lambda _progress: "abcdefghi", work)
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-00000002"
    assert (tmp_path / "checkpoints" / "step-00000001").exists()


def test_evaluations_come_before_the_first_step_when_due_and_after_the_last(tmp_path):
    calls: list[int] = []
    trainer = make_trainer(tmp_path, 5, evaluate_every=2)

    def evaluate() -> dict[str, float]:
        calls.append(trainer.progress.step)
        return {}

    trainer.fit(lambda _progress: "abcde", lambda _item, _progress: StepResult({}), evaluate)
    assert calls == [0, 2, 4, 5]


def test_a_mean_of_the_weights_that_a_run_did_not_begin_with_is_refused(tmp_path):
    trainer = make_trainer(tmp_path, 2)
    trainer.fit(lambda _progress: "ab", lambda _item, _progress: StepResult({"loss": 1.0}))
    with pytest.raises(CheckpointError, match="--train.average 0.9: .* has no mean of the weights"):
        make_trainer(tmp_path, 3, average=0.9).resume()
