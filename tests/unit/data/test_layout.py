"""SFT, reward models and rollouts lay a prompt and its answer out alike, for every structure."""

import numpy as np
import pytest
import torch

from megalite.data.chat.datasets import ranking_batch
from megalite.data.example import collate, pack
from megalite.data.layout import as_prompt, paired_example, scored_example
from megalite.distributed.mesh import Mesh
from megalite.engine.initial import initialise
from megalite.models.config import ModelConfig
from megalite.models.outputs import Values
from megalite.models.transformer import Transformer
from megalite.stages.rlhf.responses import respond
from tests.unit.data.objectives.cases import BLANKS, STRUCTURES, VOCABULARY

PROMPTS = ([20, 21, 22, 23], [30, 31])
ANSWERS = ([40, 41, 1], [50, 51, 52, 53, 1])
by_structure = pytest.mark.parametrize("kind", STRUCTURES)


@by_structure
def test_a_rollouts_rows_are_those_that_a_reward_model_learned(kind):
    structure = STRUCTURES[kind]
    prompts = [as_prompt(tokens, structure) for tokens in PROMPTS]
    batch = respond(prompts, ANSWERS, [0, 1]).batch
    for number, pair in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        example = scored_example(*map(np.array, pair), structure)
        rows = len(example)
        assert batch.decoder.tokens[number, :rows].tolist() == example.decoder.tokens.tolist()
        mine, its = batch.decoder, example.decoder
        assert mine.positions[number, :rows].tolist() == its.positions.tolist()
        assert mine.mask.start[number, :rows].tolist() == its.mask.start.tolist()
        assert mine.mask.end[number, :rows].tolist() == its.mask.end.tolist()
        assert (batch.decoder.mask.end[number, rows:] == 0).all()
        if structure.is_encoder_decoder:
            count = example.encoder_length
            assert batch.encoder.tokens[number, :count].tolist() == example.encoder.tokens.tolist()
            assert (batch.cross.end[number, :rows] == count).all()


@by_structure
def test_a_rollouts_labels_are_those_of_fine_tuning(kind):
    structure = STRUCTURES[kind]
    prompts = [as_prompt(tokens, structure) for tokens in PROMPTS]
    responses = respond(prompts, ANSWERS, [0, 1])
    for number, pair in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        example = paired_example(*map(np.array, pair), structure)
        assert responses.batch.labels[number, : len(example)].tolist() == example.labels.tolist()
        assert int(responses.mask[number].sum()) == len(pair[1])


def test_chatglm_puts_the_answer_at_its_mask():
    example = paired_example(np.array([20, 21, 22]), np.array([40, 41, 1]), STRUCTURES["glm"])
    mask, start = BLANKS.document_end, BLANKS.start
    assert example.decoder.tokens.tolist() == [20, 21, 22, mask, start, 40, 41]
    assert example.labels.tolist() == [-100, -100, -100, -100, 40, 41, 1]
    assert example.decoder.positions[:, 0].tolist() == [0, 1, 2, 3, 3, 3, 3]
    assert example.decoder.positions[:, 1].tolist() == [0, 0, 0, 0, 1, 2, 3]
    assert example.decoder.mask.end.tolist() == [4, 4, 4, 4, 5, 6, 7]


MODELS = {
    "encoder-decoder": {"num_encoder_layers": 2, "position": "relative"},
    "causal": {},
    "prefix": {},
    "glm": {"rope_axes": 2},
}


@by_structure
def test_a_reward_is_the_value_at_the_decoders_last_token(kind):
    structure = STRUCTURES[kind]
    sizes = {"hidden_size": 32, "num_heads": 2, "ffn_size": 40, "num_layers": 2, "head": "value"}
    config = ModelConfig(vocab_size=VOCABULARY, init_std=0.3, **sizes, **MODELS[kind])
    model = Transformer(config, Mesh.single())
    initialise(model, 3)
    answers = [*ANSWERS, [60, 1]]
    ranking = [scored_example(np.array(PROMPTS[0]), np.array(a), structure) for a in answers]
    made = ranking_batch([ranking, ranking[:2]], [0, 1])
    places = made.sequences, made.ends
    assert made.batch.decoder.tokens[places][made.valid].tolist() == [1] * 5
    scores = model(made.batch, Values())[places]
    for number, example in enumerate(ranking):
        alone = model(collate([example], [0]), Values())[0, len(example) - 1]
        assert torch.allclose(scores[0, number], alone, rtol=1e-5, atol=1e-6)
    assert torch.allclose(scores[1, :2], scores[0, :2], rtol=1e-5, atol=1e-6)
    assert len(pack(ranking)) == sum(map(len, ranking))
