"""How likely drawn tokens were, beside the likeliest ones."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Scored:
    """A drawn token as the model's own logits see it: before penalties, temperature, truncation.

    Attributes:
        token: its id.
        log_prob: of it.
        likeliest: ids and log-probabilities of the likeliest tokens, the likeliest first.
    """

    token: int
    log_prob: float
    likeliest: tuple[tuple[int, float], ...]

    @classmethod
    def of(cls, logits: Tensor, token: int, count: int) -> "Scored":
        """A token of logits [V], fp32, beside the ``count`` likeliest, at most V."""
        log_probs = logits.log_softmax(-1)
        values, ids = log_probs.topk(min(count, len(log_probs)))
        pairs = tuple(zip(ids.tolist(), values.tolist(), strict=True))
        return cls(token, float(log_probs[token]), pairs)
