"""GRPO's step on tiny models of several families, as a job of some processes."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megalite.data.chat.datasets import Question
from megalite.distributed.launch import Launch
from megalite.distributed.mesh import Mesh, ParallelConfig, build_mesh
from megalite.engine.base import Base
from megalite.engine.build import BuildOptions, build_model
from megalite.engine.lora import NO_LORA, LoRAConfig
from megalite.generation.prompts import Prompt
from megalite.stages.rlhf.config import GRPOConfig
from megalite.stages.rlhf.models import ReferenceModels, TrainedModels
from megalite.stages.rlhf.redraw import Rolled
from megalite.stages.rlhf.rollout import SpecialTokens
from megalite.stages.rlhf.step import PolicyStep, keep_apart
from megalite.stages.rules.scores import Rules
from megalite.stages.setup import Stage
from megalite.training.learner import Learner, Learning
from megalite.training.progress import Progress
from megalite.training.watchdog.heartbeat import Heartbeat
from tests.dist import models
from tests.dist.lora_jobs import FLAT

PROMPTS, ANSWERS, TOKENS = 4, 2, 4  # of a step, of a group, most of an answer
REWARD = """
def low(prompt, answer, row):
    tokens = answer.split()
    return sum(int(token) < row["below"] for token in tokens) > len(tokens) / 2
"""
KINDS: dict[str, dict[str, Any]] = {  # of a family
    "llama": {
        "advantage": {"kind": "grpo"},
        "rollout": {"redraws": 1},
        "update": {"leave_out_equal": True},
    },
    "t5": {
        "advantage": {"kind": "dr_grpo"},
        "update": {"leave_out_cut": True, "clip": 0.01, "clip_high": 0.02},
    },
    "chatglm2-tiny": {"advantage": {"kind": "reinforce_pp"}, "update": {"ratio": "answer"}},
}


class Questions:
    """Prompts of two to five tokens, by number."""

    def __init__(self, has_encoder: bool) -> None:
        self._has_encoder = has_encoder

    def __len__(self) -> int:
        return 40

    def __getitem__(self, number: int) -> Question:
        number %= len(self)
        read = [(7 * number + k) % models.VOCABULARY for k in range(2 + number % 4)]
        prompt = Prompt([0], encoder_tokens=read) if self._has_encoder else Prompt(read)
        return Question.of(prompt, "", f"row {number}", {"below": 30 + number})


@dataclass(frozen=True)
class Recorded(PolicyStep):
    """Keeps the answers of each rollout by their numbers."""

    answers: list[dict[int, list[int]]] = field(default_factory=list)

    def roll(self, prompts: Sequence[Prompt], ids: Sequence[int], seed: int) -> Rolled:
        batch, judged = super().roll(prompts, ids, seed)
        rows = zip(batch.sample_ids.tolist(), batch.labels, judged.mask, strict=True)
        self.answers.append({number: labels[mask].tolist() for number, labels, mask in rows})
        return batch, judged


def train(launch: Launch, layout: dict[str, Any], steps: int) -> dict[str, Any]:
    """Metrics of each step of each family, and the answers of its rollouts."""
    parallel = ParallelConfig(**layout)
    mesh = Mesh.single() if launch.world_size == 1 else build_mesh(launch, parallel, "cpu")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "reward.py"
        path.write_text(REWARD)
        configs = {family: _config(family, path) for family in KINDS}
        return {name: _train(config, mesh, parallel, steps) for name, config in configs.items()}


def train_adapted(
    launch: Launch, layout: dict[str, Any], steps: int, forms: Sequence[str]
) -> dict[str, Any]:
    """The same of one family, by adapters of bases that are held in some forms."""
    parallel = ParallelConfig(**layout)
    mesh = Mesh.single() if launch.world_size == 1 else build_mesh(launch, parallel, "cpu")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "reward.py"
        path.write_text(REWARD)
        config = _config("llama", path, **FLAT)
        return {
            form: _train(config, mesh, parallel, steps, LoRAConfig(rank=3, base_format=form))
            for form in forms
        }


def _config(family: str, reward: Path, **sizes: int) -> GRPOConfig:
    values: dict[str, Any] = {
        "model": models.config(family).model_dump(exclude={"preset"})
        | {"dropout": 0.0, "attention_dropout": 0.0, **sizes},
        "train": {"steps": 9, "global_batch_size": PROMPTS, "micro_batch_size": 2},
        "reward": {"function": f"{reward}:low", "time_limit_s": 100.0},
        "optimizer": {"learning_rate": 3e-3},
        "schedule": {"kind": "constant", "warmup": 0.0},
        **KINDS[family],
    }
    drawn = {"answers": ANSWERS, "max_new_tokens": TOKENS, "micro_batch_size": 3}
    values["rollout"] = {**values.get("rollout", {}), **drawn}
    values["update"] = {**values["update"], "mini_batches": 2}
    return GRPOConfig(**values)


def _train(
    config: GRPOConfig,
    mesh: Mesh,
    parallel: ParallelConfig,
    steps: int,
    lora: LoRAConfig = NO_LORA,
) -> tuple[list[dict[str, float]], list[dict[int, list[int]]]]:
    learning = Learning(config.train, config.optimizer, config.schedule, 1)
    options = BuildOptions(lora=lora)
    actor = build_model(config.model, mesh, parallel, seed=1, options=options)
    copy = None if lora.rank else build_model(config.model, mesh, parallel, seed=2)
    reference = copy or Base(actor)
    stage = Stage(config, Launch(), mesh, *[None] * 5, Heartbeat(), None)  # what a step reads of it
    questions = Questions(config.model.is_encoder_decoder)
    with Rules(config.reward, lambda tokens: " ".join(map(str, tokens))) as rules:
        step = Recorded(
            config,
            stage,
            TrainedModels(actor, None),
            [Learner(actor, mesh, learning)],
            ReferenceModels(reference).judges(config.rollout.temperature),
            SpecialTokens(range(3, 30), 0),
            rules=rules,
            prompts=questions,
        )
        progress, metrics = Progress(), []
        loader = stage.loader(questions, keep_apart, progress)
        for _ in range(steps):
            items = loader.read(progress.consumed_samples)
            result = step(items, progress)
            metrics.append(dict(result.metrics))
            progress = progress.after_step(PROMPTS, result.extra)
    return metrics, step.answers
