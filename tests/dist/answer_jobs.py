"""Answers of a pipeline that writes groups of them in turns, as a job of some processes."""

import contextlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from megalite.distributed.launch import Launch
from megalite.distributed.mesh import Mesh, ParallelConfig, build_mesh
from megalite.engine.build import build_model
from megalite.generation.answer import Asked, answer
from megalite.generation.blocks import Stepping
from megalite.generation.decoder import Forward, Pipelined
from megalite.generation.generate import Ending
from megalite.generation.prompts import Prompt
from megalite.generation.sampling import SamplingConfig
from megalite.models.batch import Batch
from megalite.models.context import KeyValueCache
from megalite.models.outputs import Output
from megalite.stages.samples import bubble_of_answers, decode_with
from megalite.tools.generate import GenerateConfig, run
from megalite.training.config import RunConfig
from tests.dist import models

FAMILIES = ("llama", "t5")
LENGTHS = (3, 1, 5, 5, 2, 4, 1)  # of prompts; two are equal
LIMITS = (6, 1, 9, 2, 7, 7, 3)
SLOTS = 4


@dataclass
class Counted:
    """Counts the passes that are begun before the logits of those before them are taken."""

    decode: Pipelined
    under_way: int = 0
    most: int = 0

    def begin(self, batch: Batch, cache: KeyValueCache, output: Output) -> Callable[[], Tensor]:
        take, waits = self.decode.begin(batch, cache, output), True
        if not isinstance(cache, Stepping):  # a prompt's
            return take
        self.under_way += 1
        self.most = max(self.most, self.under_way)

        def taken() -> Tensor:
            nonlocal waits
            self.under_way -= waits
            waits = False
            return take()

        return taken


def prompts_of(has_encoder: bool) -> list[Prompt]:
    rows = [[(7 * n + k) % models.VOCABULARY for k in range(n)] for n in LENGTHS]
    return [Prompt([0], encoder_tokens=row) if has_encoder else Prompt(row) for row in rows]


def write(launch: Launch, layout: dict[str, Any], groups: int) -> dict[str, dict[str, Any]]:
    """Answers, passes that were under way, and the bubble, of each family."""
    parallel = ParallelConfig(**layout)
    mesh = Mesh.single() if launch.world_size == 1 else build_mesh(launch, parallel, "cpu")
    found = {}
    for family in FAMILIES:
        config = models.config(family)
        model = build_model(config, mesh, parallel, seed=1)
        decode: Forward = decode_with(model)
        counted = None
        if isinstance(decode, Pipelined):
            counted = Counted(decode)
            decode = Pipelined(counted.begin, groups or decode.groups)
        asked = Asked(prompts_of(config.is_encoder_decoder), range(7), SLOTS, limits=LIMITS)
        sampling = SamplingConfig(max_new_tokens=max(LIMITS), seed=5)
        answers = answer(decode, asked, sampling, Ending(range(2, 20)))
        found[family] = {
            "tokens": [answers.answer(number) for number in range(7)],
            "ended": answers.ended.tolist(),
            "log_probs": answers.log_probs,
            "most": counted and counted.most,
            "bubble": bubble_of_answers(model),
        }
    return found


def speak(
    launch: Launch, layout: dict[str, Any], folder: str, asked: Sequence[dict[str, Any]]
) -> list[str]:
    """What ``megalite generate`` prints in this process for each set of options."""
    parallel, printed = ParallelConfig(**layout), []
    for options in asked:
        given = {"model": folder, "run": RunConfig(device="cpu"), "parallel": parallel} | options
        with contextlib.redirect_stdout(io.StringIO()) as out:
            assert run(GenerateConfig(**given), launch) == 0
        printed.append(out.getvalue())
    return printed
