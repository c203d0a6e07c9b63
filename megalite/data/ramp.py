"""The number of samples of a step as a function of the samples before it.

Source: Megatron-LM's ``--rampup-batch-size``; Brown et al. 2020, arXiv:2005.14165, appendix B.
"""

from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise

from pydantic import Field

from megalite.config.amount import SHARE, Amount, Length, Measure, in_samples
from megalite.config.section import Section
from megalite.errors import ConfigError

KEY = "train.batch_ramp"


@dataclass(frozen=True)
class Ramp:
    """Batch sizes one after another.

    Attributes:
        firsts: samples before the first step of each size; the first is 0, they rise.
        sizes: samples of a step.
    """

    firsts: tuple[int, ...]
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, size: int) -> "Ramp":
        """One size for all of a run."""
        return cls((0,), (size,))

    def at(self, consumed: int) -> int:
        """Samples of the step after ``consumed`` samples."""
        return self.sizes[bisect_right(self.firsts, consumed) - 1]

    def after(self, steps: int, consumed: int = 0) -> int:
        """Samples that were seen after ``steps`` steps more than ``consumed`` samples took."""
        for first, size in zip((*self.firsts[1:], None), self.sizes, strict=True):
            if first is not None and consumed >= first:
                continue
            here = steps if first is None else min(-(-(first - consumed) // size), steps)
            consumed, steps = consumed + here * size, steps - here
            if not steps:
                break
        return consumed

    def steps_to(self, samples: int) -> int:
        """Steps from a run's beginning that see at least so many samples."""
        consumed = steps = 0
        for first, size in zip((*self.firsts[1:], samples), self.sizes, strict=True):
            end = min(first, samples)
            here = max(-(-(end - consumed) // size), 0)
            consumed, steps = consumed + here * size, steps + here
        return steps


class RampConfig(Section):
    """Batch sizes before ``train.global_batch_size``, by the samples that were seen."""

    start: int = Field(0, ge=0, description="samples of the first steps; 0: no ramp")
    increment: int = Field(1, ge=1, description="samples that a step grows by at a time")
    over: Length = Field(
        0.0,
        description="length of the ramp, in equal parts for each size: '9765625 samples', "
        "'100B tokens', or a share of a run whose length is told in samples, tokens or epochs",
    )
    sizes: dict[str, int] = Field(
        {},
        description="sizes by where each begins, instead of start, such as { 0 = 512, "
        "'50000 steps' = 1024, '115000 steps' = 2048 }; the last is train.global_batch_size",
    )

    def check(self, last: int) -> None:
        """Refuse a ramp that doesn't lead to ``last`` samples a step.

        Raises:
            ConfigError: it names the key.
        """
        if self.start and self.sizes:
            raise ConfigError(f"--{KEY}.sizes: says the whole ramp: leave out {KEY}.start")
        if self.sizes:
            self._check_sizes(last)
        elif self.start:
            self._check_start(last)

    def _check_start(self, last: int) -> None:
        grown = last - self.start
        if grown <= 0 or grown % self.increment:
            low = last - -(-max(grown, 1) // self.increment) * self.increment
            fits = " or ".join(str(n) for n in (low, low + self.increment) if 0 < n < last)
            raise ConfigError(
                f"--{KEY}.start {self.start}: with an increment of {self.increment} must reach "
                f"train.global_batch_size {last}: use {fits or f'a number below {last}'}"
            )
        if Amount.read(self.over).number == 0:
            raise ConfigError(
                f"--{KEY}.over {self.over}: must be the length of the ramp, such as "
                f"'9765625 samples', as {KEY}.start is {self.start}"
            )
        if Amount.read(self.over).unit == "steps":
            raise ConfigError(
                f"--{KEY}.over {self.over!r}: must be samples, tokens, epochs or a share, as the "
                f"ramp says how many samples steps have; {KEY}.sizes takes steps"
            )

    def _check_sizes(self, last: int) -> None:
        for place, size in self.sizes.items():
            try:
                Amount.read(place)
            except ValueError as error:
                raise ConfigError(f"--{KEY}.sizes: {error}") from None
            if size < 1:
                raise ConfigError(f"--{KEY}.sizes {place!r}: {size} samples: must be at least 1")
        first, size = next(iter(self.sizes)), list(self.sizes.values())[-1]
        if Amount.read(first).number:
            raise ConfigError(f"--{KEY}.sizes: must begin with the size at 0, came {first!r}")
        if size != last:
            raise ConfigError(
                f"--{KEY}.sizes: must end with train.global_batch_size {last}, came {size}"
            )

    def all_sizes(self, last: int) -> tuple[int, ...]:
        """The samples that steps have, in order, ``last`` included."""
        if self.sizes:
            return tuple(self.sizes.values())
        return tuple(range(self.start, last, self.increment) if self.start else ()) + (last,)

    def settled(self, last: int, measure: Measure, total: int) -> "RampConfig":
        """The same in samples.

        Args:
            last: samples of a step after the ramp.
            measure: what tokens and epochs are.
            total: samples of the run; 0: it is told in steps.

        Raises:
            ConfigError: a share of a run in steps, or sizes out of order.
        """
        if self.sizes:
            return self._settled_sizes(measure, total)
        if not self.start:
            return self
        samples = self._samples(self.over, f"{KEY}.over", measure, total)
        return self.model_copy(update={"over": f"{samples} samples"})

    def _settled_sizes(self, measure: Measure, total: int) -> "RampConfig":
        """Places in steps are counted over the sizes before them."""
        firsts: list[int] = []
        sizes = list(self.sizes.values())
        for place in self.sizes:
            if Amount.read(place).unit == "steps" and firsts:
                ramp = Ramp(tuple(firsts), tuple(sizes[: len(firsts)]))
                firsts.append(ramp.after(round(Amount.read(place).number)))
            else:
                firsts.append(self._samples(place, f"{KEY}.sizes", measure, total))
        for (one, first), (other, second) in pairwise(zip(self.sizes, firsts, strict=True)):
            if second <= first:
                raise ConfigError(
                    f"--{KEY}.sizes {other!r}: is at sample {second}, not after {one!r} at "
                    f"{first}: give them in order"
                )
        places = [f"{first} samples" if first else "0" for first in firsts]
        return self.model_copy(update={"sizes": dict(zip(places, sizes, strict=True))})

    @staticmethod
    def _samples(told: float | str, key: str, measure: Measure, total: int) -> int:
        amount = Amount.read(told)
        if amount.unit == SHARE and amount.number and not total:
            raise ConfigError(
                f"--{key} {told}: is a share of a run whose length is told in steps, and the ramp "
                "says how many samples those have: give train.samples or train.tokens, or samples"
            )
        return in_samples(told, total) if amount.unit == SHARE else measure.samples(amount, key)

    def ramp(self, last: int) -> Ramp:
        """The function that a settled ramp is, which ends with ``last``."""
        if self.sizes:
            firsts = [in_samples(place, 0) for place in self.sizes]
            return Ramp(tuple(firsts), tuple(self.sizes.values()))
        if not self.start:
            return Ramp.of(last)
        over, sizes = in_samples(self.over, 0), self.all_sizes(last)
        parts = len(sizes) - 1
        return Ramp(tuple(-(-part * over // parts) for part in range(parts + 1)), sizes)
