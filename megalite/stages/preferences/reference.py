"""The reference's log-probabilities of whole answers: computed once and kept, or in every step."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from megalite.data.arrays import Float32
from megalite.data.chat.preferences import PreferredAnswers
from megalite.data.loader import passes_over
from megalite.distributed.gather import gather_objects
from megalite.engine.base import Judging
from megalite.engine.model import Model
from megalite.errors import DataError, Stopped
from megalite.models.outputs import LogProbs
from megalite.stages.preferences.objective import Answers, Comparisons, Judged
from megalite.stages.setup import Stage
from megalite.training.stop import StopSignal

PASSES = 64  # of a rank between writes: what a stop loses
NAME = "log_probs"


@dataclass(frozen=True)
class WithReference:
    """Comparisons with what the reference says of each of their examples.

    Attributes:
        answers: the comparisons.
        values: fp32 [examples], of one comparison after another; None: 0 for each.
        first: int64 [comparisons + 1], the first example of each.
    """

    answers: PreferredAnswers
    values: Float32 | None
    first: np.ndarray

    @classmethod
    def without(cls, answers: PreferredAnswers) -> "WithReference":
        """Comparisons without a reference, or whose reference says so in every step."""
        return cls(answers, None, _bounds(answers))

    def __len__(self) -> int:
        return len(self.answers)

    def __getitem__(self, number: int) -> Judged:
        number %= len(self)
        first, last = self.first[number], self.first[number + 1]
        if self.values is None:
            return self.answers[number], np.zeros(last - first, dtype=np.float32)
        return self.answers[number], self.values[first:last]


def _bounds(answers: PreferredAnswers) -> np.ndarray:
    sizes = [len(answers[number].examples) for number in range(len(answers))]
    return np.cumsum([0, *sizes], dtype=np.int64)


class StoredReference:
    """A file of log-probabilities for each dataset, known by the reference and the data.

    What is not there yet, as a stop came first, is not a number.
    """

    def __init__(self, stage: Stage, model: Model, folder: Path) -> None:
        """Keep files in a folder.

        Args:
            stage: of the run.
            model: with the reference's weights.
            folder: is made when something is written.
        """
        self._stage, self._model, self._folder = stage, model, folder
        self._stop = StopSignal(stage.mesh, stage.launch.stop)

    def of(self, answers: PreferredAnswers) -> WithReference:
        """Comparisons with what the reference says of them; nothing of it is computed twice.

        Raises:
            DataError: the file can't be read or written.
            Stopped: a signal came; what was computed is kept.

        Comm: the file's numbers from the first process to all, new ones from all dp ranks to all.
        """
        first = _bounds(answers)
        path: Path = self._on_first(lambda: self._folder / f"{self._key(answers)}.safetensors")
        values: Float32 = self._on_first(lambda: _read(path, int(first[-1])))
        table = WithReference(answers, values, first)
        unknown = np.isnan(values)
        missing = [n for n in range(len(answers)) if unknown[first[n] : first[n + 1]].any()]
        if not missing:
            return table
        self._stage.say(
            [f"computes the reference's log-probabilities of {len(missing):,} rankings: {path}"]
        )
        for done in self._compute(table, missing):
            self._on_first(lambda: _write(path, values))
            if self._stop.is_asked() and done < len(missing):
                self._stop.ignore()
                raise Stopped(
                    f"stopped on request before the first step; the reference's log-probabilities "
                    f"of {done} of {len(missing)} rankings are kept in {path}"
                )
        self._model.reshard()
        return table

    def _key(self, answers: PreferredAnswers) -> str:
        """Of the reference's weights, which the first process looked at, how they are held, rows.

        A vocabulary that grew is of another softmax.
        """
        stage, config = self._stage, self._stage.config
        source = stage.record.sources.get("checkpoint.start", {})
        told = [str(source.get("fingerprint")), config.train.precision]
        told += [config.lora.base_format, str(config.model.vocab_size)]
        text = "\n".join([*told, answers.fingerprint()])
        return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()

    def _compute(self, table: WithReference, missing: Sequence[int]) -> Iterator[int]:
        """Fill in what is missing; yields how many comparisons are done, now and then."""
        mesh, size = self._stage.mesh, self._stage.config.train.micro_batch_size
        passes = iter(passes_over(len(missing), size, mesh.dp.rank, mesh.dp.size))
        done = 0
        while own := list(islice(passes, PASSES)):
            self._stage.heartbeat.enter("evaluate")
            chosen = [[missing[place] for place in places] for places in own]
            found = self._log_probs(table.answers, chosen, missing[0])
            for of_rank in gather_objects(found, mesh.dp):
                for number, numbers in of_rank.items():
                    assert table.values is not None
                    table.values[table.first[number] : table.first[number + 1]] = numbers
                done += len(of_rank)
            yield done

    def _log_probs(
        self, answers: PreferredAnswers, chosen: Sequence[Sequence[int]], spare: int
    ) -> dict[int, Float32]:
        """Log-probabilities of the examples of each comparison; a pass without any runs ``spare``.

        Comm: as a forward pass.
        """
        device = self._stage.mesh.device
        found: dict[int, Float32] = {}
        examples = [[answers[n].examples for n in part or [spare]] for part in chosen]
        made = [
            Answers.of(flat, np.zeros(len(flat), dtype=np.float32), 0)
            for flat in ([e for item in items for e in item] for items in examples)
        ]
        results = self._model.evaluate([m.batch.to(device) for m in made], LogProbs())
        for part, items, answered, (log_probs, _) in zip(
            chosen, examples, made, results, strict=True
        ):
            sums = answered.sums(log_probs).cpu().numpy()
            ends = np.cumsum([len(item) for item in items])
            found |= dict(zip(part, np.split(sums, ends[:-1]), strict=False))
        return found

    def _on_first(self, work: Callable[[], Any]) -> Any:
        """What the first process of the mesh makes, given to all; what it refuses, all refuse.

        Comm: an object of the first process to all.
        """
        world, made, refused = self._stage.mesh.world, None, ""
        if world.rank == 0:
            try:
                made = work()
            except DataError as error:
                refused = str(error)
        made, refused = gather_objects((made, refused), world)[0]
        if refused:
            raise DataError(f"--reference.folder: {refused}")
        return made


def _read(path: Path, size: int) -> Float32:
    """A file's numbers, fp32 [size]; not a number where there is none. Its folder is made.

    Raises:
        DataError: the folder can't be written, or the file can't be read.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{path.parent}: can't be a folder: {error.strerror}") from None
    if not os.access(path.parent, os.W_OK):
        raise DataError(f"{path.parent}: may not be written: name another folder")
    if not path.is_file():
        return np.full(size, np.nan, dtype=np.float32)
    try:
        values: Float32 = load_file(path)[NAME]
    except (SafetensorError, KeyError) as error:
        raise DataError(f"{path}: can't be read: {error}: remove it, and it is made anew") from None
    if values.shape != (size,) or values.dtype != np.float32:
        raise DataError(f"{path}: is of other data than its name says: remove it")
    return values


def _write(path: Path, values: Float32) -> None:
    """Write a file as a whole, or not at all."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        save_file({NAME: values}, partial)
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise DataError(f"{path}: can't be written: {error}") from None


def against(model: Judging, items: Sequence[Comparisons]) -> list[Comparisons]:
    """Micro-batches with what a reference says of their answers. Comm: as forward passes."""
    device = model.mesh.device
    held = [answers for item in items for answers in (item.answers, item.others) if answers]
    results = model.evaluate([answers.batch.to(device) for answers in held], LogProbs())
    sums = iter([a.sums(r[0]).cpu() for a, r in zip(held, results, strict=True)])
    return [item.against(next(sums), next(sums) if item.others else None) for item in items]
