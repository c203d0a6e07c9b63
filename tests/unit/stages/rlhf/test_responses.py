import pytest
import torch

from megalite.errors import DataError
from megalite.generation.prompts import Prompt, batch_prompts
from megalite.models.batch import IGNORE
from megalite.stages.rlhf.responses import respond, scores_at_end


def test_prompts_are_padded_left_with_intervals_behind_the_padding():
    batch = batch_prompts([Prompt([5, 6, 7]), Prompt([8])], [0, 1])
    assert batch.decoder.tokens.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert batch.decoder.positions.tolist() == [[0, 1, 2], [0, 0, 0]]
    assert batch.decoder.mask.start.tolist() == [[0, 0, 0], [0, 0, 2]]
    assert batch.decoder.mask.end.tolist() == [[1, 2, 3], [0, 0, 3]]


def test_a_prefix_sees_itself_in_both_directions():
    batch = batch_prompts([Prompt([5, 6, 7], prefix=2), Prompt([8, 9], prefix=2)], [0, 1])
    assert batch.decoder.mask.end.tolist() == [[2, 2, 3], [0, 3, 3]]


def test_an_encoders_tokens_are_padded_right_and_read_by_every_row():
    batch = batch_prompts(
        [Prompt([1], encoder_tokens=[4, 5, 6]), Prompt([1], encoder_tokens=[7])], [0, 1]
    )
    assert batch.encoder.tokens.tolist() == [[4, 5, 6], [7, 0, 0]]
    assert batch.encoder.mask.end.tolist() == [[3, 3, 3], [1, 0, 0]]
    assert batch.cross.end.tolist() == [[3], [1]]


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([Prompt([1]), Prompt([])], "prompt 1: has no tokens"),
        ([Prompt([1], encoder_tokens=[2]), Prompt([1])], "prompt 1: has nothing for the encoder"),
    ],
)
def test_an_unusable_prompt_is_named(prompts, message):
    with pytest.raises(DataError, match=message):
        batch_prompts(prompts, [0, 1])


def test_answers_stand_behind_their_prompts_and_are_the_only_labels():
    responses = respond([Prompt([5, 6, 7]), Prompt([8], prefix=1)], [[1, 2], [3, 4]], [0, 1])
    batch = responses.batch
    assert batch.decoder.tokens.tolist() == [[5, 6, 7, 1, 2], [8, 3, 4, 0, 0]]
    assert batch.labels.tolist() == [
        [IGNORE, IGNORE, 1, 2, IGNORE],
        [3, 4, IGNORE, IGNORE, IGNORE],
    ]
    assert batch.decoder.positions.tolist() == [[0, 1, 2, 3, 4], [0, 1, 2, 0, 0]]
    assert batch.decoder.mask.start.abs().sum() == 0
    assert batch.decoder.mask.end.tolist() == [[1, 2, 3, 4, 5], [1, 2, 3, 0, 0]]
    assert torch.equal(responses.mask, batch.labels != IGNORE)


def test_two_position_axes_go_on_in_the_second():
    prompt = Prompt([5, 6, 7], positions=[(0, 0), (1, 0), (1, 1)])
    batch = respond([prompt], [[1, 2]], [0]).batch
    assert batch.decoder.positions[0].tolist() == [[0, 0], [1, 0], [1, 1], [1, 2], [1, 3]]


def test_the_score_is_read_at_the_last_token_before_padding():
    responses = respond([Prompt([5, 6, 7]), Prompt([8])], [[1, 2], [3, 4]], [0, 1])
    values = torch.arange(10.0).view(2, 5)
    assert scores_at_end(values, responses.mask).tolist() == [4, 7]


def test_an_empty_answer_is_named():
    with pytest.raises(DataError, match="answer 0: has no tokens"):
        respond([Prompt([5])], [[]], [0])
