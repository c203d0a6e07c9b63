"""UL2's mixture of denoisers: regular (R), sequential (S) and extreme (X)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field

from megalite.config.section import Section
from megalite.data.arrays import Int64
from megalite.data.example import Example
from megalite.data.objectives.objective import Objective

Mode = Literal["regular", "sequential", "extreme"]


class MixtureConfig(Section):
    """The tokens before a source that say which denoiser made it."""

    regular_token: str = Field(
        "[NLU]",
        description="token before a source with short spans and little noise (R); empty: none",
    )
    sequential_token: str = Field(
        "[S2S]", description="token before a source that is a prefix (S); empty: none"
    )
    extreme_token: str = Field(
        "[NLG]", description="token before a source with long spans or much noise (X); empty: none"
    )

    def token(self, mode: Mode) -> str:
        """The token of a mode."""
        return str(getattr(self, f"{mode}_token"))


@dataclass(frozen=True)
class Denoiser:
    """One part of a mixture.

    Attributes:
        mode: R, S or X; S learns what follows a prefix, the others corrupt spans.
        noise: share of a document's tokens in spans; for S the mean share of what is learned.
        mean_span: mean tokens of a span; unused for S.
        weight: in the mixture.
    """

    mode: Mode
    noise: float
    mean_span: float = 1.0
    weight: float = 1.0


# Tay et al. 2022, arXiv:2205.05131, table 1.
UL2 = (
    Denoiser("regular", 0.15, 3),
    Denoiser("regular", 0.15, 8),
    Denoiser("sequential", 0.25),
    Denoiser("extreme", 0.5, 3),
    Denoiser("extreme", 0.5, 8),
    Denoiser("extreme", 0.15, 64),
    Denoiser("extreme", 0.5, 64),
)
# Tay et al. 2022, arXiv:2210.11399, section 3.1: half sequential, a quarter of each other kind.
U_PALM = (
    Denoiser("regular", 0.15, 3, weight=0.25),
    Denoiser("sequential", 0.5, weight=0.5),
    Denoiser("extreme", 0.15, 32, weight=0.25),
)


@dataclass(frozen=True)
class Mixture:
    """Draws one of several objectives for each document.

    Attributes:
        parts: the objectives.
        weights: of each.
    """

    parts: Sequence[Objective]
    weights: Sequence[float]

    def __call__(self, tokens: Int64, random: np.random.Generator) -> Example:
        """See :class:`Objective`."""
        weights = np.asarray(self.weights)
        return self.parts[int(random.choice(len(weights), p=weights / weights.sum()))](
            tokens, random
        )

    def sizes(self, lengths: Int64) -> tuple[Int64, Int64]:
        """See :class:`Objective`."""
        decoder, encoder = zip(*(part.sizes(lengths) for part in self.parts), strict=True)
        return np.max(decoder, axis=0), np.max(encoder, axis=0)
