"""The curve of a learning rate: how it rises, falls and where it ends, as shares of its peak."""

import math
from collections.abc import Mapping
from typing import Literal

from pydantic import Field, model_validator

from megalite.config.amount import Amount, Length, share_of
from megalite.config.section import Section
from megalite.errors import ConfigError

ROUNDING = 1e-9  # of shares that are added up
ENDLESS = ("constant", "inverse_sqrt")


class CurveConfig(Section):
    """A rise to a peak, and what follows it. Shares are of the run, or of the phase."""

    kind: Literal["cosine", "linear", "polynomial", "inverse_sqrt", "constant", "wsd"] = Field(
        "cosine",
        description="curve after the warm-up: cosine, linear or polynomial decay to the floor, "
        "inverse_sqrt (of the samples, 1 at the warm-up's end), constant, or wsd (constant, then "
        "a decay at the end)",
    )
    warmup: Length = Field(
        0.01,
        description="length of the linear warm-up: a share of the run, or '2000 steps', '375M "
        "tokens', '183105 samples', '1 epoch'",
    )
    warmup_start: float = Field(
        0.0,
        ge=0,
        le=1,
        description="learning rate that the warm-up begins at, as a share of the peak",
    )
    end: Length = Field(
        1.0,
        description="place where the floor is reached, counted from the run's beginning, in the "
        "units of warmup; the rate stays from there on; constant and inverse_sqrt have none",
    )
    decay: Length = Field(
        0.2, description="length of wsd's decay, which ends at end, in the units of warmup"
    )
    decay_kind: Literal["linear", "cosine", "sqrt", "exponential"] = Field(
        "linear",
        description="curve of wsd's decay: linear or cosine; sqrt falls by the square root of what "
        "is done of it, exponential by equal factors, which needs a floor",
    )
    floor: float = Field(
        0.1,
        ge=0,
        le=1,
        description="lowest learning rate after the warm-up, as a share of the peak",
    )
    power: float = Field(1.0, gt=0, description="exponent of the polynomial decay")
    cycles: int = Field(
        1, ge=1, description="times that cosine falls from the peak to the floor, equally long"
    )

    @model_validator(mode="after")
    def _check_curve(self) -> "CurveConfig":
        shares = {"warmup", "decay", "end"}
        told = {key: value for key in shares if isinstance(value := getattr(self, key), float)}
        self._check_shares(told)
        if self.kind == "inverse_sqrt" and not Amount.read(self.warmup).number:
            raise ConfigError(
                f"--schedule.warmup {self.warmup}: must be more than 0 with kind inverse_sqrt, "
                "whose peak is there; warmup_start 1 keeps the rate at it until then"
            )
        if self.kind == "wsd" and self.decay_kind == "exponential" and not self.floor:
            raise ConfigError(
                "--schedule.floor 0.0: must be more than 0 with decay_kind exponential, which "
                "never reaches it: use 0.01, or decay_kind linear"
            )
        for key, is_read in (
            ("end", self.kind not in ENDLESS),
            ("power", self.kind == "polynomial"),
            ("cycles", self.kind == "cosine"),
            ("decay_kind", self.kind == "wsd"),
        ):
            if key in self.model_fields_set and not is_read and getattr(self, key) != _of(key):
                raise ConfigError(
                    f"--schedule.{key} {getattr(self, key)}: kind {self.kind} has no such thing: "
                    "leave it out, or choose another kind"
                )
        return self

    def _check_shares(self, told: dict[str, float]) -> None:
        """Refuse shares that can't be, whatever the run's length is."""
        if self.kind == "wsd" and len(told) == 3:
            left = told["end"] - told["warmup"]
            if told["decay"] > left + ROUNDING:
                raise ConfigError(
                    f"--schedule.decay {self.decay}: must be at most {left:g}, what "
                    f"schedule.warmup {self.warmup} leaves of the run: lower one of them"
                )

    def named(self, key: str) -> dict[str, str]:
        """The lengths as they were told, each behind its key in section ``key``, for a message."""
        return {one: f"{key}.{one} {getattr(self, one)}" for one in ("warmup", "decay", "end")}

    def check_in(self, total: int, named: Mapping[str, str], is_last: bool = True) -> None:
        """Refuse lengths that overlap; they are settled.

        Args:
            total: samples of the run, or of the phase.
            named: the lengths as they were told; see :meth:`named`.
            is_last: whether nothing follows: the end may be beyond the run then.

        Raises:
            ConfigError: it names the keys, and the places in samples.
        """
        if self.kind in ENDLESS:
            return
        warmup, end = share_of(self.warmup, total), share_of(self.end, total)
        decay = share_of(self.decay, total) if self.kind == "wsd" else 0.0
        if warmup + decay > end + ROUNDING:
            after = f", and {named['decay']} must fit between" if decay else ""
            raise ConfigError(
                f"--{named['end']}: is at sample {end * total:,.0f}, the warm-up of "
                f"{named['warmup']} ends at {warmup * total:,.0f}{after}: give a later "
                "end or a shorter warm-up"
            )
        if end > 1.0 and not is_last:
            raise ConfigError(
                f"--{named['end']}: is {end * total:,.0f} samples after its phase begins, "
                f"and the next begins after {total:,}: phases must not overlap"
            )


def _of(key: str) -> object:
    """The default of a key."""
    return CurveConfig.model_fields[key].default


class PhaseConfig(CurveConfig):
    """A curve that takes the place of the one before from some place of the run on."""

    begin: Length = Field(
        description="place where the phase begins, counted from the run's beginning, in the units "
        "of warmup; its own lengths and shares are counted from there to the next phase"
    )
    peak: float = Field(
        1.0, gt=0, description="peak of the phase, as a share of optimizer.learning_rate"
    )
    warmup: Length = Field(0.0, description="length of the phase's warm-up, as schedule.warmup")


def rate(config: CurveConfig, samples: int, total: int) -> float:
    """Share of the peak learning rate for the step that begins after ``samples`` of ``total``.

    Linear warm-up to 1 and then the curve; lengths are settled.

    Source: of cosine cycles Loshchilov & Hutter 2016, arXiv:1608.03983; of wsd's decay by the
    square root Hagele et al. 2024, arXiv:2405.18392.
    """
    warmup, end = share_of(config.warmup, total), share_of(config.end, total)
    done = min(samples / max(total, 1), 1.0)
    if done < warmup:
        start = config.warmup_start
        return start + (1.0 - start) * ((samples + 1) / (warmup * total + 1))
    if config.kind == "constant":
        return 1.0
    if config.kind == "inverse_sqrt":
        return max(math.sqrt(warmup / done), config.floor)
    begin = end - share_of(config.decay, total) if config.kind == "wsd" else warmup
    progress = min(max((done - begin) / max(end - begin, 1e-12), 0.0), 1.0)
    return 1.0 - (1.0 - config.floor) * _fallen(config, progress)


def _fallen(config: CurveConfig, progress: float) -> float:
    """Share of the way from the peak to the floor, after a share of the decay."""
    kind = config.decay_kind if config.kind == "wsd" else config.kind
    if kind == "cosine":
        cycles = config.cycles * progress
        in_cycle = cycles - math.floor(cycles) if progress < 1.0 else 1.0
        return 0.5 * (1.0 - math.cos(math.pi * in_cycle))
    if kind == "polynomial":
        return 1.0 - (1.0 - progress) ** config.power
    if kind == "sqrt":
        return math.sqrt(progress)
    if kind == "exponential" and config.floor < 1.0:
        return (1.0 - config.floor**progress) / (1.0 - config.floor)
    return progress
