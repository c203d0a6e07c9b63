"""Answers of a model that learns from preferences to held-out prompts, measured as PPO's are."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from megalite.data.chat.datasets import Prompts
from megalite.data.named_files import notes_of_others, row_files
from megalite.data.split import Split
from megalite.engine.base import Judging
from megalite.engine.model import Model
from megalite.generation.prompts import Prompt
from megalite.stages.conversation import ChatFormat
from megalite.stages.preferences.config import DPOConfig
from megalite.stages.rlhf.heldout import measure_answers
from megalite.stages.rlhf.models import ReferenceModels, frozen, log_probs_of
from megalite.stages.rlhf.redraw import Rolled
from megalite.stages.rlhf.rollout import (
    Judges,
    SpecialTokens,
    rollout,
    special_tokens,
)
from megalite.stages.rlhf.shapes import shape_of_reward_model
from megalite.stages.samples import decode_with
from megalite.stages.setup import Stage
from megalite.stages.told import check_reward_model
from megalite.training.trainer import Evaluate

REWARD_MODEL = "answers.reward_model"


@dataclass(frozen=True)
class HeldOutAnswers:
    """What a run reads to measure its answers, opened before it starts.

    Attributes:
        config: of the run.
        prompts: held out.
        special_tokens: of the answers.
        notes: what of the files is not read or was left out.
    """

    config: DPOConfig
    prompts: Prompts
    special_tokens: SpecialTokens
    notes: Sequence[str]

    @classmethod
    def read(cls, config: DPOConfig, chat_format: ChatFormat) -> "HeldOutAnswers | None":
        """Read the prompts; None where no answers are measured.

        Raises:
            ConfigError: the reward model learned answers that are written otherwise.
            DataError: a file of prompts is missing or malformed.
        """
        if not config.answers.prompts:
            return None
        name, own = config.answers.reward_model, chat_format.chat.tokenizer
        check_reward_model(config, own, REWARD_MODEL, name)
        files, others = row_files(config.answers.prompts)
        rules = replace(config.data.rules, split=Split())
        prompts = Prompts(files, chat_format.chat, chat_format.structure, rules)
        tokens = special_tokens(chat_format.chat)
        return cls(config, prompts, tokens, [*prompts.notes, *notes_of_others(others)])

    def measured(self, stage: Stage, model: Model, reference: Judging) -> Evaluate:
        """What measures the answers of ``model``, against what it was as it started.

        Builds the reward model, if there is one.
        """
        config, drawn = self.config, self.config.answers.rollout
        rewards = self._reward_models(stage)
        judges = Judges(
            decode_with(model),
            log_probs_of(model, drawn.temperature),
            None,
            ReferenceModels(reference, rewards).judges(drawn.temperature),
            stage.mesh.device,
        )

        def roll(prompts: Sequence[Prompt], numbers: Sequence[int], seed: int) -> Rolled:
            with model.gathered():
                found = rollout(judges, prompts, numbers, drawn, seed, self.special_tokens)
            responses, judged = found
            return responses.batch, judged

        def measure() -> dict[str, float]:
            samples, each = config.train.evaluate_samples, config.answers.each
            found = measure_answers(roll, self.prompts, samples, each, config.run.seed, stage.mesh)
            if not rewards:
                del found["heldout_reward"], found["heldout_reward_deviation"]
            return found

        return measure

    def _reward_models(self, stage: Stage) -> list[Model]:
        """The reward model, frozen, if there is one."""
        name = self.config.answers.reward_model
        if not name:
            return []
        shape = shape_of_reward_model(self.config.model, name, REWARD_MODEL)
        return [frozen(stage.model(shape.without_dropout(), name, needs_head=True))]
