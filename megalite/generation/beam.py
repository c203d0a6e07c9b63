"""Beam search with the semantics of Hugging Face's ``generate``."""

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from megalite.config import Section
from megalite.generation.decoder import Decoder
from megalite.generation.generate import Answers, Ending
from megalite.generation.sampling import Repetition, penalise_repetition
from megalite.generation.text import cut_at_stop

IMPOSSIBLE = -1.0e9


class BeamConfig(Section):
    """How the most probable answer is searched for."""

    num_beams: int = Field(1, gt=0, description="answers searched in parallel; 1: no beam search")
    length_penalty: float = Field(
        1.0, description="power of an answer's tokens that divides its score; larger favours longer"
    )
    early_stopping: Literal["heuristic", "first", "never"] = Field(
        "heuristic",
        description="end of a search; heuristic: when a longer answer is unlikely to win; first: "
        "when num_beams answers have ended; never: when no longer answer can win",
    )


@dataclass
class _Beams:
    """K hypotheses of each of B prompts.

    Attributes:
        tokens: [B, K, M] int64.
        scores: [B, K] fp32, sums of log-probabilities; of ended ones after the length penalty.
        lengths: [B, K] int64.
        ended: [B, K] bool.
    """

    tokens: Tensor
    scores: Tensor
    lengths: Tensor
    ended: Tensor

    def take(self, index: Tensor) -> "_Beams":
        """The hypotheses at ``index`` [B, K'] of each prompt."""
        tokens = self.tokens.gather(1, index[..., None].expand(-1, -1, self.tokens.shape[2]))
        parts = (self.scores, self.lengths, self.ended)
        return _Beams(tokens, *(part.gather(1, index) for part in parts))

    def merged(self, other: "_Beams") -> "_Beams":
        """The hypotheses of both."""
        mine = (self.tokens, self.scores, self.lengths, self.ended)
        theirs = (other.tokens, other.scores, other.lengths, other.ended)
        return _Beams(*(torch.cat(pair, 1) for pair in zip(mine, theirs, strict=True)))


class BeamSearch:
    """One search over a batch of prompts."""

    def __init__(
        self,
        decoder: Decoder,
        config: BeamConfig,
        ending: Ending,
        max_new_tokens: int,
        repetition: Repetition | None = None,
    ) -> None:
        """Prepare a search.

        Args:
            decoder: has the prompts.
            config: how the answer is searched for.
            ending: what ends an answer; nothing is told of its text.
            max_new_tokens: most tokens of an answer.
            repetition: the penalty of tokens that came before, or None.
        """
        self._decoder, self._config = decoder, config
        self._ending, self._limit = ending, max_new_tokens
        self._end_ids, self._pad_id = sorted(ending.end_ids), ending.pad_id
        self._repetition = repetition

    def run(self) -> Answers:
        """Give the best answer of each prompt."""
        logits = self._decoder.start()
        batch, beams = logits.shape[0], self._config.num_beams
        prompts = torch.arange(batch, device=logits.device)
        self._decoder.select(prompts.repeat_interleave(beams))
        logits = logits.repeat_interleave(beams, 0)
        seen = None if self._repetition is None else self._repetition.seen(logits.shape[-1], beams)
        running = self._empty(batch, logits.device)
        running.scores[:, 0] = 0
        done = self._empty(batch, logits.device)
        improvable = torch.ones(batch, 1, dtype=torch.bool, device=logits.device)
        for number in range(self._limit):
            candidates, parents = self._candidates(running, self._scores(logits, seen), number)
            done = self._collect(done, candidates, improvable)
            blocked = candidates.scores + candidates.ended * IMPOSSIBLE
            best = blocked.topk(beams).indices
            running = candidates.take(best)
            running.scores = blocked.gather(1, best)
            improvable = improvable & self._can_improve(running, done, number + 1)
            if self._is_over(improvable, done, candidates):
                break
            chosen = parents.gather(1, best) + prompts[:, None] * beams
            tokens = running.tokens[:, :, number].flatten()
            if seen is not None:
                seen = seen[chosen.flatten()].scatter(1, tokens[:, None], True)
            self._decoder.select(chosen.flatten())
            logits = self._decoder.advance(tokens)
        best = done.tokens[:, :1]
        ended = torch.isin(best, self._ends(best)).any(-1) | self._stopped(
            best, done.lengths[:, :1]
        )
        return Answers(best[:, 0], done.lengths[:, 0], ended[:, 0])

    def _scores(self, logits: Tensor, seen: Tensor | None) -> Tensor:
        """Log-probabilities [B K, V] of next tokens, less the penalty of those that were seen."""
        scores = logits.log_softmax(-1)
        if seen is None or self._repetition is None:
            return scores
        return penalise_repetition(scores, seen, self._repetition.penalty)

    def _empty(self, batch: int, device: torch.device) -> _Beams:
        shape = (batch, self._config.num_beams)
        return _Beams(
            torch.full((*shape, self._limit), self._pad_id, device=device),
            torch.full(shape, IMPOSSIBLE, device=device),
            torch.zeros(shape, dtype=torch.int64, device=device),
            torch.zeros(shape, dtype=torch.bool, device=device),
        )

    def _candidates(self, running: _Beams, scores: Tensor, number: int) -> tuple[_Beams, Tensor]:
        """The best continuations of each prompt, enough that num_beams of them go on."""
        batch, beams = running.scores.shape
        scores = scores.view(batch, beams, -1) + running.scores[..., None]
        kept = max(2, 1 + len(self._end_ids)) * beams
        top, flat = scores.flatten(1).topk(min(kept, scores[0].numel()))
        parents, tokens = flat // scores.shape[-1], flat % scores.shape[-1]
        candidates = running.take(parents)
        candidates.tokens[:, :, number] = tokens
        candidates.scores = top
        candidates.lengths = torch.full_like(tokens, number + 1)
        candidates.ended = torch.isin(tokens, self._ends(tokens)) | (number + 1 == self._limit)
        candidates.ended |= self._stopped(candidates.tokens, candidates.lengths)
        return candidates, parents

    def _collect(self, done: _Beams, candidates: _Beams, improvable: Tensor) -> _Beams:
        """Keep the best ended answers; only the first num_beams candidates may end."""
        beams = self._config.num_beams
        first = torch.arange(candidates.ended.shape[1], device=candidates.ended.device) < beams
        ended = candidates.ended & first
        full = done.ended.all(1, keepdim=True) & (self._config.early_stopping == "first")
        usable = ended & ~full & improvable
        scores = candidates.scores / candidates.lengths.float() ** self._config.length_penalty
        scores = scores + (~usable) * IMPOSSIBLE
        ending = _Beams(candidates.tokens, scores, candidates.lengths, ended)
        merged = done.merged(ending)
        return merged.take(merged.scores.topk(beams).indices)

    def _can_improve(self, running: _Beams, done: _Beams, length: int) -> Tensor:
        """Whether the best running answer may still beat the worst ended one: [B, 1] bool."""
        penalty = self._config.length_penalty
        if self._config.early_stopping == "never" and penalty > 0:
            length = self._limit
        best = running.scores[:, :1] / length**penalty
        worst = done.scores.amin(1, keepdim=True)
        worst = torch.where(done.ended, worst, IMPOSSIBLE)
        return (best > worst).any(-1, keepdim=True)

    def _is_over(self, improvable: Tensor, done: _Beams, candidates: _Beams) -> bool:
        enough = bool(done.ended.all()) and self._config.early_stopping == "first"
        return enough or not bool(improvable.any()) or bool(candidates.ended.all())

    def _ends(self, like: Tensor) -> Tensor:
        return torch.tensor(self._end_ids, dtype=torch.int64, device=like.device)

    def _stopped(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Whether a stop text is in the text of each hypothesis [B, K, M]: [B, K] bool."""
        stops, decode = self._ending.stops, self._ending.decode
        if decode is None or not stops:
            return torch.zeros_like(lengths, dtype=torch.bool)
        rows = zip(tokens.flatten(0, 1).tolist(), lengths.flatten().tolist(), strict=True)
        stopped = [cut_at_stop(decode(row[:length]), stops)[1] for row, length in rows]
        return torch.tensor(stopped, device=lengths.device).view_as(lengths)
