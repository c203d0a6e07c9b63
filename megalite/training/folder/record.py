"""Which run a folder holds: what its checkpoints keep of it, and what another start may change."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from megalite.config.section import Section, section_class
from megalite.engine.weights import check_same_model, config_of
from megalite.errors import CheckpointError
from megalite.models.config import ModelConfig
from megalite.training.checkpoint.manifest import Facts
from megalite.training.config import ScheduleConfig, TrainConfig
from megalite.training.progress import Progress
from megalite.training.schedule import Clock, total_samples

SectionT = TypeVar("SectionT", bound=Section)

# A folder may be moved, rows kept elsewhere; a fault on purpose is no part of a run.
UNKEPT = ("run.folder", "data.cache", "faults.")
# A change of these makes the state mean something else; a trailing dot is a section's.
DECIDING = (
    "data.objective",
    "data.objectives",
    "data.prefix",
    "pretraining.objective",
    "tokenizer.",
    "optimizer.kind",
    "optimizer.adafactor.factor_from",
    "lora.rank",
    "lora.alpha",
    "lora.layers",
    "lora.rslora",
    "lora.dora",
    "lora.base_format",
)
# Of what was saved before there were any.
WITHOUT_ADAPTERS = {"lora.rank": 0, "lora.dora": False, "lora.base_format": "compute"}
PINNED_WEIGHTS = ("checkpoint.start", "reward_model", "answers.reward_model")
REWARD_MODELS = "reward.models."  # further ones, each behind it under its name
ORIGIN = ("published", "dtype", "dtypes")
TOKENIZER = "tokenizer.path"
FREE = (TOKENIZER, "tokenizer.trust_code")  # a tokenizer is known by its files, wherever they are


@dataclass(frozen=True)
class RunRecord:
    """What a run is: kept in each of its checkpoints and compared when it goes on.

    Attributes:
        stage: such as ``sft``.
        config: of the run, as JSON has it.
        sources: what it took from elsewhere, by key: where that is, and its fingerprint.
        origin: facts of where the weights came from.
        text: of config.toml.
        versions: of what computes, by name.
        kind: the class of the config.
    """

    stage: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    sources: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    origin: Facts = field(default_factory=dict)
    text: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    kind: type[Section] = Section

    def facts(self) -> Facts:
        """What a checkpoint's manifest keeps."""
        if not self.stage:
            return dict(self.origin)
        run = {
            "stage": self.stage,
            "config": self.config,
            "sources": self.sources,
            "versions": self.versions,
        }
        return {**self.origin, "run": run}

    def going_on(self, facts: Facts) -> "RunRecord":
        """This record with what a checkpoint keeps of where its weights once came from."""
        origin = {key: facts[key] for key in ORIGIN if key in facts}
        was = facts.get("run", {"sources": {}})["sources"]
        weights = {key: source for key, source in was.items() if is_weights(key)}
        return replace(self, origin={**origin, **self.origin}, sources={**weights, **self.sources})

    def check(self, facts: Facts, path: Path) -> None:
        """Refuse to go on from a checkpoint whose state would mean something else here.

        A checkpoint that doesn't say what run it is of is known by its model alone.

        Raises:
            CheckpointError: the checkpoint is of another stage, model, tokenizer or objective, or
                what the run took from elsewhere has changed; it says what to do.
        """
        was = facts.get("run")
        if was is not None and was["stage"] != self.stage:
            raise CheckpointError(
                f"--run.folder {_run_of(path)}: {path} is of the stage {was['stage']}, this is "
                f"{self.stage}: give each run a folder of its own"
            )
        model = ModelConfig(**self.config["model"])
        check_same_model(model, config_of(facts, path), str(path))
        if was is None:
            return
        for key, now, before in self._changes(was["config"]):
            if _is_among(key, DECIDING) and key not in FREE:
                raise CheckpointError(
                    f"--{key} {now}: {path} has {before}, and with another its state would mean "
                    "something else: give the run its value, or a folder of its own"
                )
        self._check_sources(was["sources"], was["config"], path)
        start = was["sources"].get("checkpoint.start")
        if "published" in facts and start and not self.config["checkpoint"]["start"]:
            raise CheckpointError(
                f"--checkpoint.start: {path} began from {start['path']}, whose config says which "
                "special tokens its texts have: give it again"
            )

    def _check_sources(
        self, before: Mapping[str, Any], config: Mapping[str, Any], path: Path
    ) -> None:
        """Refuse what was read from elsewhere and is not what it was."""
        was = dict(flat(config))
        for key, given in flat(self.config):
            then, now = before.get(key), self.sources.get(key)
            if (then or {}).get("fingerprint") == (now or {}).get("fingerprint"):
                continue
            is_same_key = was.get(key) == given
            if then is not None and (is_same_key or key == TOKENIZER):
                raise CheckpointError(_moved(key, given, then, now, path))
            if now is not None and is_weights(key):
                origin = f"began from {then['path']}" if then else "began without it"
                raise CheckpointError(
                    f"--{key} {given}: the run of {path} {origin}: leave that, or give this "
                    "run a folder of its own"
                )

    def differences(self, facts: Facts) -> list[str]:
        """What is not as it was when a checkpoint was saved, a line for each key."""
        was = facts.get("run")
        if was is None:
            return ["this checkpoint doesn't say what run it is of: only its model was compared"]
        changes = self._changes(was["config"])
        said = [f"going on with --{key} {now}, was {before}" for key, now, before in changes]
        computed = was.get("versions", {})  # older checkpoints have none
        return said + [
            f"going on with {name} {now}, was {computed[name]}"
            for name, now in self.versions.items()
            if computed.get(name, now) != now
        ]

    def clock_before(self, facts: Facts) -> Clock | None:
        """The learning rate as the run had it that saved a checkpoint, where that is known."""
        was = facts.get("run")
        if was is None:
            return None
        config = was["config"]
        train = _section(TrainConfig, config["train"])
        return Clock(
            _section(ScheduleConfig, config["schedule"]),
            config["optimizer"]["learning_rate"],
            total_samples(train, Progress(facts["step"], facts["consumed_samples"])),
        )

    def change_of_rate(self, facts: Facts, now: Clock) -> Iterator[str]:
        """Say how the learning rate goes on where the run's length or schedule is another."""
        before = self.clock_before(facts)
        if before is not None and now != before:
            consumed = facts["consumed_samples"]
            yield (
                f"the schedule is over {now.total_samples} samples, was over "
                f"{before.total_samples}; {consumed} are done: the learning rate of the next step "
                f"is {now.learning_rate(consumed):.3g}, was to be "
                f"{before.learning_rate(consumed):.3g}"
            )

    def _changes(self, before: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
        """Each key that both have with different values: key, value here, value there."""
        was = WITHOUT_ADAPTERS | dict(by_field(before, self.kind))
        for key, value in by_field(self.config, self.kind):
            if key in was and was[key] != value and not _is_among(key, UNKEPT):
                yield key, _said(value), _said(was[key])


def _section(cls: type[SectionT], values: Mapping[str, Any]) -> SectionT:
    """A section from values of JSON that another version may have written; its own keys alone."""
    return cls.model_validate_json(json.dumps(_known(cls, values)))


def _known(cls: type[Section], values: Any) -> Any:
    """Values without keys that a section, or those inside it, don't have."""
    if isinstance(values, Sequence) and not isinstance(values, str):
        return [_known(cls, one) for one in values]
    known = {}
    for key, value in values.items():
        field = cls.model_fields.get(key)
        inner = section_class(field.annotation) if field is not None else None
        if field is not None:
            known[key] = value if inner is None else _known(inner, value)
    return known


def is_weights(key: str) -> bool:
    """Whether a key names a stored model."""
    return key in PINNED_WEIGHTS or key.startswith(REWARD_MODELS)


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each value of nested sections under its dotted key."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def by_field(
    values: Mapping[str, Any], cls: type[Section], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """The value of each field of nested sections under its dotted key; one may be a mapping."""
    for name, value in values.items():
        field = cls.model_fields.get(name)
        inner = section_class(field.annotation) if field is not None else None
        if inner is not None and isinstance(value, Mapping):
            yield from by_field(value, inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _is_among(key: str, names: Sequence[str]) -> bool:
    """Whether a key is one of these, or in a section of them, whose name ends in a dot."""
    return any(key.startswith(name) if name.endswith(".") else key == name for name in names)


def _said(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value or '""'


def _run_of(checkpoint: Path) -> Path:
    """The run's folder that a checkpoint is in."""
    return checkpoint.parents[1]


def _moved(
    key: str, given: Any, then: Mapping[str, Any], now: Mapping[str, Any] | None, path: Path
) -> str:
    """Say that something which a run took from elsewhere is not what it was."""
    what = "is not there any more"
    if now is not None and now["path"] != then["path"]:
        what = f"is {_said(now['path'])} now, and the run took {_said(then['path'])}"
    elif now is not None:
        what = "has another content now than when the run took it"
    do = "put back what it was"
    if is_weights(key):
        do = f"give --{key} {then['path']} as it was"
    return f"--{key} {_said(given)}: {what} ({path}): {do}, or give this run a folder of its own"
