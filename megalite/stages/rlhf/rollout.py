"""A rollout: prompts are answered by the actor and judged by all four models."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from megalite.config import Section
from megalite.generation.decoder import CachedDecoder, Forward
from megalite.generation.generate import Answers, Ending, generate
from megalite.generation.prompts import Prompt, batch_prompts
from megalite.generation.sampling import SamplingConfig
from megalite.models.batch import Batch
from megalite.ops.random import fold, hash64
from megalite.stages.rlhf.experience import Judgement
from megalite.stages.rlhf.responses import Responses, respond, scores_at_end

DRAWS = hash64("rollout")


class RolloutConfig(Section):
    """How answers are written; they are drawn from the whole distribution that is trained."""

    max_new_tokens: int = Field(64, gt=0, description="Most tokens of an answer.")
    temperature: float = Field(
        1.0, gt=0, description="Divides the logits, in rollouts and in updates alike."
    )
    micro_batch_size: int = Field(32, gt=0, description="Answers judged in one forward pass.")


@dataclass(frozen=True)
class FrozenModels:
    """The two models that don't learn, each a function of a batch.

    Attributes:
        reference: log-probabilities of the labels at the rollout's temperature, [B, S].
        reward: the reward model's values, [B, S], of which an answer's last counts.
    """

    reference: Callable[[Batch], Tensor]
    reward: Callable[[Batch], Tensor]

    def judge(self, responses: Responses, micro_batch_size: int) -> tuple[Tensor, Tensor]:
        """Log-probabilities [B, S] and scores [B] of answers, both fp32."""

        def ask(batch: Batch, mask: Tensor) -> tuple[Tensor, Tensor]:
            return self.reference(batch), scores_at_end(self.reward(batch), mask)

        return in_passes(responses, micro_batch_size, ask)

    def __call__(self, responses: Responses, micro_batch_size: int) -> "Pending":
        """Judge at once; see ``AskFrozen``."""
        judged = self.judge(responses, micro_batch_size)
        return lambda: judged


Pending = Callable[[], tuple[Tensor, Tensor]]
AskFrozen = Callable[[Responses, int], Pending]  # hand answers over, and later take what was said


@dataclass(frozen=True)
class Judges:
    """The four models without dropout.

    Attributes:
        decode: the actor with a cache: logits [B, S, V].
        actor: log-probabilities of the labels under the actor at the rollout's temperature, [B, S].
        critic: values, [B, S].
        frozen: the reference and the reward model, here or on processes of their own.
        device: where the models read batches.
    """

    decode: Forward
    actor: Callable[[Batch], Tensor]
    critic: Callable[[Batch], Tensor]
    frozen: AskFrozen
    device: torch.device | str = "cpu"


@dataclass(frozen=True)
class Vocabulary:
    """The special tokens of answers.

    Attributes:
        end_ids: tokens that end an answer.
        pad_id: stands in padding; may not be one of ``end_ids``.
    """

    end_ids: Collection[int]
    pad_id: int


def answer(
    decode: Forward, prompts: Batch, config: RolloutConfig, seed: int, vocabulary: Vocabulary
) -> Answers:
    """Draw an answer to every prompt of a batch, a function of (seed, sample id)."""
    sampling = SamplingConfig(
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        seed=fold(seed, DRAWS),
    )
    decoder = CachedDecoder(decode, prompts, config.max_new_tokens)
    ending = Ending(vocabulary.end_ids, vocabulary.pad_id)
    return generate(decoder, prompts, sampling, ending)


def in_passes(
    responses: Responses,
    micro_batch_size: int,
    ask: Callable[[Batch, Tensor], tuple[Tensor, Tensor]],
) -> tuple[Tensor, Tensor]:
    """Two tensors, [B, ...]: ``ask`` of batch and mask, ``micro_batch_size`` rows a pass."""
    rows = torch.arange(len(responses.mask), device=responses.mask.device)
    parts = [
        ask(responses.batch.select(index), responses.mask[index])
        for index in rows.split(micro_batch_size)
    ]
    first, second = (torch.cat(part) for part in zip(*parts, strict=True))
    return first, second


@torch.no_grad()
def judge(judges: Judges, responses: Responses, ended: Tensor, micro_batch_size: int) -> Judgement:
    """Ask all models about answers, ``micro_batch_size`` rows a pass."""
    frozen = judges.frozen(responses, micro_batch_size)
    log_probs, values = in_passes(
        responses, micro_batch_size, lambda batch, _: (judges.actor(batch), judges.critic(batch))
    )
    reference, scores = frozen()
    return Judgement(responses.mask, log_probs, reference, values, scores, ended)


def rollout(
    judges: Judges,
    prompts: Sequence[Prompt],
    sample_ids: Sequence[int],
    config: RolloutConfig,
    seed: int,
    vocabulary: Vocabulary,
) -> tuple[Responses, Judgement]:
    """Answer prompts and judge the answers.

    Args:
        judges: the models.
        prompts: this data-parallel rank's.
        sample_ids: their numbers in the run's order; draws depend on them, not on the rank.
        config: how answers are written.
        seed: the run's.
        vocabulary: the special tokens.
    """
    batch = batch_prompts(prompts, sample_ids, vocabulary.pad_id)
    answers = answer(judges.decode, batch, config, seed, vocabulary)
    rows = [answers.answer(number) for number in range(len(prompts))]
    responses = respond(prompts, rows, sample_ids, vocabulary.pad_id).to(judges.device)
    ended = answers.ended.to(judges.device)
    return responses, judge(judges, responses, ended, config.micro_batch_size)
