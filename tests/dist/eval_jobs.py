"""What a model is worth on given examples, as a job of some processes."""

from typing import Any

import numpy as np

from megalite.data.example import Example, collate, decoder_example, encoder_decoder_example
from megalite.distributed.launch import Launch
from megalite.tools.judging import judge, measure_text
from tests.dist import models
from tests.dist.jobs import make_learner, mesh_of

FAMILIES = ("llama", "t5")
COUNT, SIZE = 11, 2  # examples, and those of a forward pass


def example(number: int, has_encoder: bool) -> Example:
    """A source of one to five tokens and a target of one to six."""
    draw = np.random.default_rng(number)
    source = draw.integers(0, models.VOCABULARY, draw.integers(1, 6))
    target = draw.integers(0, models.VOCABULARY, draw.integers(1, 7))
    if has_encoder:
        return encoder_decoder_example(source, np.append(0, target[:-1]), target)
    tokens = np.append(source, target)
    return decoder_example(tokens[:-1], np.append(np.full(len(source) - 1, -100), target))


def measure(launch: Launch, layout: dict[str, Any]) -> dict[str, tuple[dict[str, float], list]]:
    """Numbers of all examples together, and of each."""
    found, mesh = {}, mesh_of(launch, layout)
    for family in FAMILIES:
        model = make_learner(mesh, family, layout).model
        examples = [example(n, model.config.is_encoder_decoder) for n in range(COUNT)]
        with model.gathered():
            whole = measure_text(model, examples, collate, SIZE)
            found[family] = whole, judge(model, examples, SIZE).tolist()
    return found
