"""From next-token logits to a token: penalties, truncation, and draws that no layout changes."""

import math
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from megalite.config import Section
from megalite.models.batch import Stream
from megalite.ops.draw import draw_tokens
from megalite.ops.random import philox

AHEAD = 16  # tokens whose random numbers are made together: a hundred operators, of few elements
CHANGED_AT_ONCE = 2**19  # logits that are penalised, sorted and cut together, in some ten copies


class SamplingConfig(Section):
    """How the next token is chosen."""

    max_new_tokens: int = Field(128, gt=0, description="most tokens of an answer")
    temperature: float = Field(
        1.0, ge=0, description="divisor of the logits; 0: always the likeliest token"
    )
    top_k: int = Field(0, ge=0, description="number of likeliest tokens to draw from; 0: all")
    top_p: float = Field(
        1.0, gt=0, le=1, description="probability of the likeliest tokens to draw from; 1: all"
    )
    min_p: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="least probability of a token, as a share of the likeliest one's; 0: none",
    )
    repetition_penalty: float = Field(
        1.0,
        gt=0,
        description="divisor of positive and factor of negative logits of tokens that came before; "
        "1: none",
    )
    presence_penalty: float = Field(
        0.0, description="subtracted from the logits of tokens that the answer has"
    )
    frequency_penalty: float = Field(
        0.0, description="subtracted from a token's logit for each time that the answer has it"
    )
    seed: int = Field(0, ge=0, description="seed of the draws")

    @property
    def truncates(self) -> bool:
        """Whether some tokens can't be drawn."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0

    @property
    def counts_answer(self) -> bool:
        """Whether tokens of the answer are penalised by how often it has them."""
        return bool(self.presence_penalty or self.frequency_penalty)

    @property
    def penalises(self) -> bool:
        """Whether a token's logit is changed by what came before it."""
        return self.repetition_penalty != 1 or self.counts_answer


def penalise_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make tokens that are already in the sequence less likely.

    Args:
        logits: [B, V] fp32.
        seen: [B, V] bool, tokens of each sequence.
        penalty: above 1 makes them less likely.

    Source: Keskar et al. 2019, arXiv:1909.05858, section 4.1.
    """
    if penalty == 1:
        return logits
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


@dataclass(frozen=True)
class Repetition:
    """The penalty of tokens that came before.

    Attributes:
        prompts: whose tokens count, padding left out.
        penalty: above 1 makes them less likely.
    """

    prompts: Stream
    penalty: float

    def seen(self, vocabulary: int, copies: int = 1) -> Tensor:
        """Which tokens each prompt has: bool [B copies, V], the copies of a prompt together."""
        tokens, real = self.prompts.tokens, ~self.prompts.mask.is_empty
        counts = torch.zeros(len(tokens), vocabulary, dtype=torch.int32, device=tokens.device)
        counts = counts.scatter_add_(1, tokens, real.int())
        return counts.bool().repeat_interleave(copies, 0)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Set all but the ``k`` largest logits of [B, V] to -inf; ties with the k-th stay."""
    if k == 0 or k >= logits.shape[-1]:
        return logits
    smallest = logits.topk(k).values[..., -1:]
    return logits.masked_fill(logits < smallest, -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the fewest likeliest tokens of [B, V] whose probability reaches ``p``, at least one."""
    if p >= 1:
        return logits
    ordered, order = logits.sort(descending=False)
    dropped = ordered.softmax(-1).cumsum(-1) <= 1 - p
    dropped[..., -1] = False
    return logits.masked_fill(dropped.scatter(-1, order, dropped), -torch.inf)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Keep tokens of [B, V] at least ``p`` times as likely as the likeliest.

    Source: Nguyen et al. 2024, arXiv:2407.01082, section 3.
    """
    if p == 0:
        return logits
    least = logits.amax(-1, keepdim=True) + math.log(p)
    return logits.masked_fill(logits < least, -torch.inf)


def penalise_presence(logits: Tensor, counts: Tensor, presence: float, frequency: float) -> Tensor:
    """Make tokens less likely that an answer has.

    Args:
        logits: [B, V] fp32.
        counts: [B, V], how often each answer has each token.
        presence: subtracted where it has it at all.
        frequency: subtracted for each time.

    Source: OpenAI's API reference, "Frequency and presence penalties".
    """
    return logits - (counts > 0) * presence - counts * frequency


def truncate(logits: Tensor, config: SamplingConfig) -> Tensor:
    """Logits [B, V] after temperature, top-k, top-p and min-p, in this order."""
    logits = keep_top_k(logits / config.temperature, config.top_k)
    return keep_min_p(keep_top_p(logits, config.top_p), config.min_p)


def draw(logits: Tensor, seed: int, sample_ids: Tensor, index: int | Tensor) -> Tensor:
    """Draw a token for each sequence; its random number is a function of what is drawn.

    Args:
        logits: [B, V] fp32, -inf where a token can't come.
        seed: 64-bit key.
        sample_ids: [B] int64, the sample of each sequence.
        index: number of the token in its answer, or of each, [B] int64.

    Returns:
        [B] int64.
    """
    return pick(logits, _uniform(seed, sample_ids, index))


def _uniform(seed: int, sample_ids: Tensor, index: int | Tensor) -> Tensor:
    zero = torch.zeros_like(sample_ids)
    high, low, _, _ = philox(seed, zero + index, zero, sample_ids >> 32, sample_ids & 0xFFFFFFFF)
    return unit_interval(high, low)


class Uniforms:
    """The random numbers of the next tokens of some rows; those of several tokens are made at once.

    Each is a function of seed, sample and place alone: :func:`draw` makes the same one by one.
    """

    def __init__(self, seed: int, sample_ids: Tensor, numbers: Tensor) -> None:
        """Begin.

        Args:
            seed: 64-bit key.
            sample_ids: [B] int64.
            numbers: [B] int64, tokens that each row has.
        """
        self._seed, self._ids, self._numbers = seed, sample_ids, numbers
        self._used = 0
        self._made: Tensor | None = None

    def next(self) -> Tensor:
        """Of the next token of each row, fp64 [B] in (0, 1)."""
        place = self._used % AHEAD
        if self._made is None or place == 0:
            ahead = torch.arange(self._used, self._used + AHEAD, device=self._ids.device)
            self._made = _uniform(self._seed, self._ids[None], self._numbers + ahead[:, None])
        self._used += 1
        return self._made[place]


def unit_interval(high: Tensor, low: Tensor) -> Tensor:
    """Two 32-bit words as an fp64 number in (0, 1); below 1 after rounding too."""
    return (((high << 20) + (low >> 12)).double() + 0.5) * 2.0**-52


def pick(logits: Tensor, uniform: Tensor) -> Tensor:
    """The token of [B, V] ``logits`` whose share of the unit interval holds ``uniform`` [B]."""
    return draw_tokens(logits, uniform, 1.0)[0]


def choose(logits: Tensor, config: SamplingConfig, uniform: Tensor | None) -> tuple[Tensor, Tensor]:
    """The next token of each sequence, all on the logits' device.

    Args:
        logits: [B, V] fp32 after penalties.
        config: how it is chosen.
        uniform: a number of each row, fp64 [B] in (0, 1); None at temperature 0.

    Returns:
        [B] int64, and the log-probability by which each was drawn, [B] fp32: 0 of the likeliest
        token at temperature 0.
    """
    if uniform is None:
        return logits.argmax(-1), torch.zeros_like(logits[:, 0])
    if config.truncates:
        return draw_tokens(truncate(logits, config), uniform, 1.0)
    return draw_tokens(logits, uniform, config.temperature)


def choose_in_parts(
    logits: Tensor,
    config: SamplingConfig,
    uniform: Tensor | None,
    came: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor]:
    """The same after penalties; as many rows at once as make :data:`CHANGED_AT_ONCE` logits.

    Args:
        logits: [B, V] fp32.
        config: how a token is chosen.
        uniform: as :func:`choose`.
        came: bool [B, V], tokens of prompt and answer, and [B, V], how often the answer has each;
            None: nothing is penalised.
    """
    if not config.penalises and not config.truncates:
        return choose(logits, config, uniform)
    size, found = max(1, CHANGED_AT_ONCE // logits.shape[1]), []
    for first in range(0, len(logits), size):
        part = slice(first, first + size)
        own = logits[part]
        if config.penalises and came is not None:
            own = penalise_repetition(own, came[0][part], config.repetition_penalty)
            presence, frequency = config.presence_penalty, config.frequency_penalty
            own = penalise_presence(own, came[1][part], presence, frequency)
        found.append(choose(own, config, None if uniform is None else uniform[part]))
    tokens, log_probs = zip(*found, strict=True)
    return torch.cat(tokens), torch.cat(log_probs)
