"""What a run is told about rewards by rule."""

import re
from collections.abc import Collection
from typing import Any

from pydantic import Field, field_validator, model_validator

from megalite.config import Section
from megalite.errors import ConfigError
from megalite.stages.rules.python_tests import TestLimits
from megalite.stages.rules.ready import READY, Settings

MODEL = "model"  # the name of reward_model among the parts of a score
GUARDED = "guarded"  # and of the share of answers that the guard alone scores


class ReadyRulesConfig(Section):
    """What the ready reward functions are told."""

    column: str = Field(
        "answer",
        description="key of a row that has the right answer, or a list of them (exact_match, "
        "numeric_answer)",
    )
    pattern: str = Field(
        "", description="Python's regular expression that a good answer has (regular_expression)"
    )
    length: int = Field(
        0, ge=0, description="characters of the best answer (length); 0: must be set for it"
    )
    tests: str = Field(
        "tests", description="key of a row that has Python code behind an answer (python_tests)"
    )
    tests_s: float = Field(
        5.0, gt=0, description="seconds that an answer's code and tests may take (python_tests)"
    )
    tests_mib: int = Field(
        1024, gt=0, description="MiB of address space that they may take (python_tests)"
    )

    @property
    def settings(self) -> Settings:
        """The same as the functions have it."""
        limits = TestLimits(self.tests_s, self.tests_mib)
        return Settings(self.column, self.tests, self.pattern, self.length, limits)


class GuardConfig(Section):
    """A reward model that alone scores some answers, as LLaMA 2-Chat's of safety does."""

    model: str = Field(
        "",
        description="name in reward.models of a reward model that alone scores answers which it "
        "finds bad, or whose prompt's row says so; of the others its score doesn't count; empty: "
        "none",
    )
    below: float = Field(
        0.15, gt=0, lt=1, description="sigmoid of its score below which it finds an answer bad"
    )
    column: str = Field(
        "",
        description="key of a row that is true where it alone scores the answers; empty: there is "
        "no such key",
    )


class ScoreConfig(Section):
    """What answers are scored by, beside or instead of a reward model."""

    function: tuple[str, ...] = Field(
        (),
        description='reward functions: "file.py:name" of a (prompt, answer, row) -> float, or '
        f"{', '.join(READY)}; one, or a list",
    )
    weights: tuple[float, ...] = Field(
        (), description="weight of each of reward.function's scores; empty: 1 each"
    )
    model_weight: float = Field(1.0, description="weight of reward_model's score beside others")
    models: dict[str, str] = Field(
        {},
        description="further reward models: run, checkpoint or Hugging Face folder or name of "
        'each, by names that metrics have ({ safety = "runs/safety" })',
    )
    model_weights: dict[str, float] = Field(
        {}, description="weight of each of reward.models' scores; of those left out: 1"
    )
    guard: GuardConfig = GuardConfig()
    time_limit_s: float = Field(
        10.0, gt=0, description="seconds after which a call of a reward function has hung"
    )
    workers: int = Field(
        1, gt=0, description="processes that call reward functions, for each data-parallel rank"
    )
    rules: ReadyRulesConfig = ReadyRulesConfig()
    bias: float = Field(
        0.0,
        description="number added to each score, such as minus the mean score of demonstrations "
        "(InstructGPT)",
    )
    score_limit: float = Field(
        0.0, ge=0, description="largest size of a score, clipped to beyond it; 0: no clipping"
    )
    score_without_end: float | None = Field(
        None, description="score of an answer that was cut before its end token; none: its own"
    )

    @field_validator("function", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        if isinstance(value, str):
            return (value,) if value else ()
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _check(self) -> "ScoreConfig":
        count, given = len(self.function), len(self.weights)
        if given not in (0, count):
            raise ConfigError(
                f"--reward.weights: must have {count} numbers, one for each of reward.function, "
                f"came {given}"
            )
        for name in self.function:
            path, has_colon, attribute = name.rpartition(":")
            if name not in READY and not (has_colon and path and attribute.isidentifier()):
                raise ConfigError(
                    f'--reward.function {name}: must be "file.py:name", or one of '
                    f"{', '.join(READY)}"
                )
        if len(set(self.function)) < count:
            raise ConfigError("--reward.function: names a function twice: give it more weight")
        self._check_models()
        self._check_ready()
        return self

    def _check_models(self) -> None:
        taken = {MODEL, GUARDED, *(name.rpartition(":")[2] for name in self.function)}
        for name, folder in self.models.items():
            if not re.fullmatch(r"[\w-]+", name) or not folder:
                raise ConfigError(
                    f"--reward.models {name!r}: must be a name of letters, digits, _ and -, with a "
                    'folder ({ safety = "runs/safety" })'
                )
            if name in taken:
                raise ConfigError(
                    f"--reward.models {name!r}: another part of the score has this name: give it "
                    "another"
                )
        for name in self.model_weights:
            if name not in self.models:
                raise ConfigError(
                    f"--reward.model_weights {name!r}: must be a name in reward.models, which "
                    f"{_has(self.models)}"
                )
        guard = self.guard
        if guard.model and guard.model not in self.models:
            raise ConfigError(
                f"--reward.guard.model {guard.model}: must be a name in reward.models, which "
                f"{_has(self.models)}"
            )
        if guard.column and not guard.model:
            raise ConfigError(
                f"--reward.guard.column {guard.column}: needs reward.guard.model, which scores the "
                "answers to these rows"
            )

    def _check_ready(self) -> None:
        rules = self.rules
        if "regular_expression" in self.function:
            if not rules.pattern:
                raise ConfigError(
                    "--reward.rules.pattern: must be set for reward.function regular_expression"
                )
            try:
                re.compile(rules.pattern)
            except re.error as error:
                raise ConfigError(
                    f"--reward.rules.pattern {rules.pattern!r}: is no regular expression: {error}"
                ) from None
        if "length" in self.function and not rules.length:
            raise ConfigError("--reward.rules.length: must be above 0 for reward.function length")
        if "python_tests" in self.function and rules.tests_s >= self.time_limit_s:
            raise ConfigError(
                f"--reward.rules.tests_s {rules.tests_s:g}: must be less than reward.time_limit_s "
                f"{self.time_limit_s:g}"
            )


def _has(names: Collection[str]) -> str:
    return f"has {', '.join(names)}" if names else "is empty"
