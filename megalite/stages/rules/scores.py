"""Scores of a run's answers by rule: each data-parallel rank scores its own, all end together."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from megalite.data.chat.datasets import Question
from megalite.distributed.gather import gather_objects
from megalite.distributed.mesh import Mesh
from megalite.errors import ConfigError, DataError
from megalite.generation.prompts import Prompt
from megalite.stages.rules.config import GUARDED, MODEL, ScoreConfig
from megalite.stages.rules.ready import READY, fault_of_row
from megalite.stages.rules.worker import Orders
from megalite.stages.rules.workers import Call, Workers

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class _Scored:
    """What one process made of its answers.

    Attributes:
        rank: its data-parallel rank; -1 where another process scores them.
        scores: a list a function.
        fault: why there are none, or empty.
    """

    rank: int
    scores: list[list[float]]
    fault: str = ""


class Rules(AbstractContextManager["Rules"]):
    """The reward functions of a run; its processes end with the block.

    Attributes:
        names: of the functions, as metrics have them.
        weights: of their scores.
    """

    def __init__(self, config: ScoreConfig, decode: Decode) -> None:
        """Hold the functions; ``decode`` turns an answer's tokens, its end included, into text."""
        self._config, self._decode = config, decode
        self.names = _names(config.function)
        self.weights = config.weights or (1.0,) * len(self.names)
        orders = Orders(config.function, config.rules.settings, config.time_limit_s)
        self._workers = Workers(orders, config.workers)

    def __exit__(self, *_: object) -> None:
        self._workers.close()

    def check(self, questions: Iterable[Prompt]) -> None:
        """Find out before the start whether rows have what the functions need.

        Ready functions look at every row. The others score an empty answer to the first row of each
        set of keys.

        Raises:
            ConfigError: there is no such file or function.
            DataError: a row lacks something, or a function can't score it.
        """
        if not self.names:
            return
        for name in self._config.function:
            path = name.rpartition(":")[0]
            if name not in READY and not Path(path).is_file():
                raise ConfigError(f"--reward.function {name}: no such file")
        tried: dict[frozenset[str], Call] = {}
        for question in questions:
            call = _call(question, "")
            for name in self._config.function:
                fault = fault_of_row(name, self._config.rules.settings, call.row)
                if name in READY and fault:
                    raise DataError(f"{call.where}: {fault}, for reward.function {name}")
            keys = frozenset(key for key, value in call.row.items() if value is not None)
            tried.setdefault(keys, call)
        self._workers.score(list(tried.values()))

    def score(
        self, prompts: Sequence[Prompt], answers: Sequence[Sequence[int]], mesh: Mesh
    ) -> list[list[float]]:
        """Every function's scores of this data-parallel rank's answers: a list a function.

        The first process of the rank asks the functions, once for each answer, so that all have the
        same numbers whatever a function does.

        Comm: all-gather of the scores over the mesh.

        Raises:
            DataError: a function raised, hung or gave no number on some process; on all of them.
        """
        own = _Scored(-1, [])
        if mesh.tp.rank == mesh.pp.rank == 0:
            own = self._scored(prompts, answers, mesh.dp.rank)
        found = gather_objects(own, mesh.world)
        fault = next((one.fault for one in found if one.fault), "")
        if fault:
            raise DataError(fault)
        return next(one.scores for one in found if one.rank == mesh.dp.rank)

    def _scored(
        self, prompts: Sequence[Prompt], answers: Sequence[Sequence[int]], rank: int
    ) -> _Scored:
        pairs = zip(prompts, answers, strict=True)
        calls = [_call(prompt, self._decode(answer)) for prompt, answer in pairs]
        try:
            return _Scored(rank, self._workers.score(calls))
        except (ConfigError, DataError) as error:  # raised on all processes together
            return _Scored(rank, [], str(error))


def _call(prompt: Prompt, answer: str) -> Call:
    assert isinstance(prompt, Question)
    return Call(prompt.where, prompt.text, answer, prompt.row)


def _names(functions: Sequence[str]) -> tuple[str, ...]:
    """A name for each function: the last part of its own where no other part of a score has it."""
    last = [name.rpartition(":")[2] for name in functions]
    taken = [*last, MODEL, GUARDED]
    pairs = zip(functions, last, strict=True)
    return tuple(name if taken.count(short) > 1 else short for name, short in pairs)
