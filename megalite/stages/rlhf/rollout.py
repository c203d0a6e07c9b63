"""A rollout: the actor answers prompts, and all four models judge the answers."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from pydantic import Field
from torch import Tensor

from megalite.config import Section
from megalite.data.chat.chat import Chat
from megalite.generation.answer import SLOTS, Asked, answer
from megalite.generation.decoder import Forward
from megalite.generation.generate import Answers, Ending
from megalite.generation.prompts import Prompt
from megalite.generation.sampling import SamplingConfig
from megalite.models.batch import Batch
from megalite.seeds import fold, hash64
from megalite.stages.rlhf.experience import Judgement
from megalite.stages.rlhf.responses import Responses, respond, scores_at_end
from megalite.stages.rlhf.scoring import Scoring
from megalite.training import stop

DRAWS = hash64("rollout")


class RolloutConfig(Section):
    """How answers are drawn: from the whole distribution that is trained."""

    max_new_tokens: int = Field(64, gt=0, description="largest number of tokens per answer")
    temperature: float = Field(
        1.0, gt=0, description="divisor of the logits, in rollouts and in updates alike"
    )
    micro_batch_size: int = Field(32, gt=0, description="answers judged per forward pass")
    heldout_answers: int = Field(
        1,
        gt=0,
        description="answers to each held-out prompt of an evaluation; of several "
        "`heldout_self_bleu` says how alike they are",
    )
    slots: int = Field(
        SLOTS,
        gt=0,
        description="answers written side by side, whose keys and values bound a rollout's memory",
    )
    reuse_log_probs: bool = Field(
        False,
        description="learn from the log-probabilities that tokens were drawn with, which saves a "
        "pass of the actor; `rollout_gap` says by how much they differ from a pass's",
    )


@dataclass(frozen=True)
class FrozenJudgement:
    """What the models that don't learn say about answers.

    Attributes:
        log_probs: [B, S] fp32 under the reference.
        scores: [B, M] fp32, a column for each reward model.
    """

    log_probs: Tensor
    scores: Tensor

    def to(self, device: torch.device | str) -> "FrozenJudgement":
        """The same with every tensor on ``device``."""
        return FrozenJudgement(self.log_probs.to(device), self.scores.to(device))


TakeJudgement = Callable[[], FrozenJudgement]  # waits until the answers are judged


class FrozenModels(Protocol):
    """The models that don't learn, wherever they are."""

    def asked(self) -> stop.Asked:
        """What processes of theirs alone were asked, to stop or to save, since the last call."""

    def ask(self, responses: Responses, micro_batch_size: int) -> TakeJudgement:
        """Hand answers over to be judged, ``micro_batch_size`` sequences per pass."""


@dataclass(frozen=True)
class LocalModels:
    """The models that don't learn on this process, each a function of a batch.

    Attributes:
        reference: log-probabilities of the labels at the rollout's temperature, [B, S].
        rewards: each reward model's values, [B, S], of which an answer's last counts.
        drop: lets go of parameters that were gathered, once all answers are judged.
    """

    reference: Callable[[Batch], Tensor]
    rewards: Sequence[Callable[[Batch], Tensor]] = ()
    drop: Callable[[], None] = lambda: None

    def judge(self, responses: Responses, micro_batch_size: int) -> FrozenJudgement:
        """Judge answers, ``micro_batch_size`` sequences per pass."""

        def ask(batch: Batch, mask: Tensor) -> tuple[Tensor, Tensor]:
            log_probs, scores = self.reference(batch), torch.zeros(len(mask), 0)
            if self.rewards:
                each = [scores_at_end(reward(batch), mask) for reward in self.rewards]
                scores = torch.stack(each, 1)
            return log_probs, scores.to(log_probs.device)

        judgement = FrozenJudgement(*in_passes(responses, micro_batch_size, ask))
        self.drop()
        return judgement

    def asked(self) -> stop.Asked:
        """Nothing: this process's signals are known otherwise."""
        return stop.Asked()

    def ask(self, responses: Responses, micro_batch_size: int) -> TakeJudgement:
        """Judge at once; see :class:`FrozenModels`."""
        judgement = self.judge(responses, micro_batch_size)
        return lambda: judgement


@dataclass(frozen=True)
class Judges:
    """The models without dropout.

    Attributes:
        decode: the actor with a cache: logits of the last row, [B, 1, V].
        actor: log-probabilities of the labels under the actor at the rollout's temperature, [B, S].
        critic: values, [B, S]; None: there is no critic.
        frozen: the reference and the reward models.
        device: where the models read batches.
        scoring: by several of them, or by rules; None: by the one reward model, if there is one.
    """

    decode: Forward
    actor: Callable[[Batch], Tensor]
    critic: Callable[[Batch], Tensor] | None
    frozen: FrozenModels
    device: torch.device | str = "cpu"
    scoring: Scoring | None = None


@dataclass(frozen=True)
class Written:
    """How answers came about.

    Attributes:
        ended: [B] bool, answers with an end token.
        log_probs: [B, S] fp32, by which each token was drawn, at the rows that it is the label of.
    """

    ended: Tensor
    log_probs: Tensor

    @classmethod
    def of(cls, answers: Answers, mask: Tensor) -> "Written":
        """Lay what was drawn out over rows; ``mask`` [B, S] is those that answers are labels of."""
        assert answers.log_probs is not None
        number = torch.arange(answers.tokens.shape[1], device=mask.device)
        drawn = answers.log_probs.to(mask.device)
        is_token = number < answers.lengths.to(mask.device)[:, None]
        rows = torch.zeros(mask.shape, device=mask.device)
        rows[mask] = drawn[is_token]
        return cls(answers.ended.to(mask.device), rows)


@dataclass(frozen=True)
class SpecialTokens:
    """The special tokens of answers.

    Attributes:
        end_ids: tokens that end an answer.
        pad_id: stands in padding; may not be one of ``end_ids``.
    """

    end_ids: Collection[int]
    pad_id: int


def special_tokens(chat: Chat) -> SpecialTokens:
    """The special tokens of answers: an answer ends where the reward model learned to score it.

    Padding differs from the ends even where the tokenizer's does not.
    """
    ends, pad = chat.end_ids, chat.tokenizer.pad_id
    return SpecialTokens(ends, next(n for n in (pad, *range(len(ends) + 1)) if n not in ends))


def write_answers(
    decode: Forward, asked: Asked, config: RolloutConfig, seed: int, tokens: SpecialTokens
) -> Answers:
    """Draw an answer to every prompt, a function of (seed, sample id)."""
    sampling = SamplingConfig(
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        seed=fold(seed, DRAWS),
    )
    return answer(decode, asked, sampling, Ending(tokens.end_ids, tokens.pad_id))


def in_passes(
    responses: Responses,
    micro_batch_size: int,
    ask: Callable[[Batch, Tensor], tuple[Tensor, Tensor]],
) -> tuple[Tensor, Tensor]:
    """Two tensors, [B, ...]: ``ask`` of batch and mask, ``micro_batch_size`` sequences per pass."""
    sequences = torch.arange(len(responses.mask), device=responses.mask.device)
    parts = [
        ask(responses.batch.select(index), responses.mask[index])
        for index in sequences.split(micro_batch_size)
    ]
    first, second = (torch.cat(part) for part in zip(*parts, strict=True))
    return first, second


Joined = tuple[Tensor, dict[str, Tensor]]  # one score of each answer, [B], and its parts


@torch.no_grad()
def judge(
    judges: Judges,
    responses: Responses,
    written: Written,
    config: RolloutConfig,
    join: Callable[[Tensor], Joined],
) -> Judgement:
    """Ask all models about answers, ``config.micro_batch_size`` sequences per pass.

    ``join`` makes one score of those of the reward models, [B, M].
    """
    size, drawn = config.micro_batch_size, written.log_probs
    take = judges.frozen.ask(responses, size)

    def ask(batch: Batch, mask: Tensor) -> tuple[Tensor, Tensor]:
        nothing = torch.zeros(mask.shape, device=mask.device)
        values = nothing if judges.critic is None else judges.critic(batch)
        return nothing if config.reuse_log_probs else judges.actor(batch), values

    log_probs, values = in_passes(responses, size, ask)
    if config.reuse_log_probs:
        log_probs = drawn
    frozen, mask, ended = take(), responses.mask, written.ended
    scores, parts = join(frozen.scores)
    return Judgement(mask, log_probs, frozen.log_probs, values, scores, ended, drawn, parts)


def rollout(
    judges: Judges,
    prompts: Sequence[Prompt],
    sample_ids: Sequence[int],
    config: RolloutConfig,
    seed: int,
    tokens: SpecialTokens,
) -> tuple[Responses, Judgement]:
    """Answer prompts and judge the answers.

    Args:
        judges: the models.
        prompts: this data-parallel rank's.
        sample_ids: their numbers in the run's order; draws depend on them, not on the rank.
        config: how answers are drawn.
        seed: of the draws.
        tokens: the special tokens of answers.
    """
    asked = Asked(prompts, sample_ids, config.slots, judges.device)
    answers = write_answers(judges.decode, asked, config, seed, tokens)
    texts = [answers.answer(number) for number in range(len(prompts))]
    responses = respond(prompts, texts, sample_ids, tokens.pad_id).to(judges.device)
    join = _joining(judges.scoring, prompts, texts)
    written = Written.of(answers, responses.mask)
    return responses, judge(judges, responses, written, config, join)


def _joining(
    scoring: Scoring | None, prompts: Sequence[Prompt], answers: Sequence[Sequence[int]]
) -> Callable[[Tensor], Joined]:
    """What makes one score of the reward models' and, by now, of the rules'."""
    if scoring is None:
        return lambda of_models: (of_models.sum(1), {})  # of one, or none: 0
    by_rule, guarded = scoring.by_rule(prompts, answers), scoring.guarded(prompts)
    return lambda of_models: scoring.joined(of_models, by_rule, guarded)
