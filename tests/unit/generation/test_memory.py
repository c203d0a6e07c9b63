"""The memory that is said before the start holds what answers take."""

import pytest

from megalite.distributed.mesh import Mesh, ParallelConfig
from megalite.engine.build import build_model
from megalite.generation.answer import Asked, answer
from megalite.generation.generate import Ending
from megalite.generation.prompts import Prompt
from megalite.generation.room import READ_ROWS
from megalite.generation.sampling import SamplingConfig
from megalite.models.config import ModelConfig
from megalite.stages.samples import decode_with
from tests.memory import most_bytes

SHAPE = {"vocab_size": 3000, "hidden_size": 64, "num_layers": 3, "num_heads": 4, "ffn_size": 172}
CHANGED = {"top_p": 0.9, "repetition_penalty": 1.2, "presence_penalty": 0.1}
CASES = {
    "drawn": ({}, [60] * 8, {}),
    "more prompts than slots": ({}, [9, 60, 3, 44, 60, 60, 8, 31, 17, 2, 5], {}),
    "an encoder": ({"num_encoder_layers": 3, "position": "relative"}, [60] * 8, {}),
    "few heads of keys": ({"num_kv_heads": 1}, [200] * 2, {}),
    "cut and penalised": ({}, [60] * 8, CHANGED),
    "a long prompt": ({"num_layers": 1}, [3 * READ_ROWS], {}),
}


@pytest.mark.parametrize("case", CASES)
def test_answers_take_no_more_than_is_said_and_a_fifth_at_least(case):
    more, lengths, sampling = CASES[case]
    model = build_model(ModelConfig(**(SHAPE | more)), Mesh.single(), ParallelConfig(), seed=3)
    rows = [[4 + n % 50 for n in range(length)] for length in lengths]
    prompts = [Prompt(row) for row in rows]
    if model.config.is_encoder_decoder:
        prompts = [Prompt([0], encoder_tokens=row) for row in rows]
    asked = Asked(prompts, range(len(rows)), 8)
    config = SamplingConfig(max_new_tokens=9, **sampling)
    room, decode = asked.room(config), decode_with(model)
    taken = most_bytes(lambda: answer(decode, asked, config, Ending(())))
    keys, working = room.size_bytes(model.config, 4), room.working_bytes(model.config, 4, config)
    assert keys < taken <= keys + working
    assert taken > keys + working / 5
