"""DPO and its relatives on tiny models of several families, as a job of some processes."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from megalite.data.chat.preferences import Comparison
from megalite.data.example import Example, decoder_example, encoder_decoder_example
from megalite.distributed.launch import Launch
from megalite.distributed.mesh import Mesh
from megalite.engine.base import Base
from megalite.engine.lora import LoRAConfig
from megalite.models.batch import IGNORE
from megalite.stages.preferences.config import PreferenceLossConfig
from megalite.stages.preferences.objective import Comparisons
from megalite.stages.preferences.step import PreferenceLearner
from tests.dist import models
from tests.dist.jobs import make_learner, mesh_of
from tests.dist.lora_jobs import FLAT, adapted_learner

BATCH = 4  # rankings of a step
KINDS = {  # of a family
    "llama": {"kind": "dpo", "label_smoothing": 0.1},
    "t5": {"kind": "simpo", "sft_coefficient": 0.2},
    "chatglm2-tiny": {"kind": "kto", "beta": 0.5},
}


def answer(draw: np.random.Generator, prompt: np.ndarray, has_encoder: bool) -> Example:
    """An answer of one to six tokens after its prompt."""
    target = draw.integers(0, models.VOCABULARY, draw.integers(1, 7))
    if has_encoder:
        return encoder_decoder_example(prompt, np.append(0, target[:-1]), target)
    tokens = np.append(prompt, target)
    labels = np.append(np.full(len(prompt) - 1, IGNORE), target)
    return decoder_example(tokens[:-1], labels)


def ranking(number: int, has_encoder: bool) -> tuple[Comparison, np.ndarray]:
    """Two to four answers, an answer to another prompt, and what a reference says of each."""
    draw = np.random.default_rng(number)
    prompt = draw.integers(0, models.VOCABULARY, draw.integers(2, 6))
    answers = [answer(draw, prompt, has_encoder) for _ in range(2 + number % 3)]
    item = Comparison(answers, other=answer(draw, prompt, has_encoder))
    lengths = [int((example.labels != IGNORE).sum()) for example in item.examples]
    said = -np.log(models.VOCABULARY) * np.array(lengths) - draw.random(len(lengths))
    return item, said.astype(np.float32)


def train(launch: Launch, layout: dict[str, Any], steps: int) -> dict[str, list[dict[str, float]]]:
    """Metrics of each step of each family."""
    mesh = mesh_of(launch, layout)
    return {family: _train(mesh, family, layout, steps) for family in KINDS}


def train_adapted(
    launch: Launch, layout: dict[str, Any], steps: int, forms: Sequence[str]
) -> dict[str, list[dict[str, float]]]:
    """DPO of one family by adapters of bases held in some forms, which are asked as reference."""
    found, mesh = {}, mesh_of(launch, layout)
    for form in forms:
        lora = LoRAConfig(rank=3, alpha=6.0, base_format=form)
        learner = adapted_learner(mesh, "llama", layout, lora, sizes=FLAT)
        learns = PreferenceLearner(PreferenceLossConfig(), learner, Base(learner.model))
        found[form] = _steps(learns, steps)
    return found


def _train(mesh: Mesh, family: str, layout: dict[str, Any], steps: int) -> list[dict]:
    learner = make_learner(mesh, family, layout)
    return _steps(PreferenceLearner(PreferenceLossConfig(**KINDS[family]), learner), steps)


def _steps(learns: PreferenceLearner, steps: int) -> list[dict]:
    learner = learns.learner
    dp, has_encoder = learner.mesh.dp, learner.model.config.is_encoder_decoder
    share, metrics = BATCH // dp.size, []
    for step in range(steps):
        first = step * BATCH + dp.rank * share
        items = [
            Comparisons.of([ranking(n, has_encoder)], [n]) for n in range(first, first + share)
        ]
        metrics.append(learns.step(items, step * BATCH))
    return metrics
