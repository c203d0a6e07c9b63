import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from megalite.generation.sampling import (
    SamplingConfig,
    Uniforms,
    choose,
    draw,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalise_presence,
    penalise_repetition,
    pick,
    truncate,
    unit_interval,
)


def _logits(rows: int = 5, vocabulary: int = 37) -> torch.Tensor:
    return 3 * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(0))


def _uniforms() -> Uniforms:
    return Uniforms(0, torch.arange(5), torch.zeros(5, dtype=torch.int64))


@pytest.mark.parametrize("k", [1, 5, 37, 100])
def test_top_k_equals_transformers(k):
    assert torch.equal(keep_top_k(_logits(), k), TopKLogitsWarper(k)(None, _logits()))


@pytest.mark.parametrize("p", [0.01, 0.5, 0.9])
def test_top_p_equals_transformers(p):
    assert torch.equal(keep_top_p(_logits(), p), TopPLogitsWarper(p)(None, _logits()))


@pytest.mark.parametrize("p", [0.01, 0.3, 0.99])
def test_min_p_equals_transformers(p):
    assert torch.equal(keep_min_p(_logits(), p), MinPLogitsWarper(p)(None, _logits()))


def test_presence_and_frequency_are_subtracted_by_what_the_answer_has():
    counts = torch.tensor([[0.0, 1.0, 3.0]])
    penalised = penalise_presence(torch.zeros(1, 3), counts, 0.5, 0.25)
    assert penalised.tolist() == [[0.0, -0.75, -1.25]]


def test_the_log_probability_of_a_draw_is_that_of_what_it_is_drawn_from():
    ids, config = torch.arange(5), SamplingConfig(temperature=0.6, top_k=9, top_p=0.8, min_p=0.05)
    tokens, log_probs = choose(_logits(), config, Uniforms(config.seed, ids, ids).next())
    expected = truncate(_logits(), config).log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    assert torch.allclose(log_probs, expected, atol=1e-6)
    alone = [Uniforms(config.seed, i[None], i[None]) for i in ids]
    one_by_one = [choose(_logits()[i : i + 1], config, alone[i].next()) for i in range(5)]
    assert torch.equal(tokens, torch.cat([token for token, _ in one_by_one]))


@pytest.mark.parametrize("penalty", [0.7, 1.0, 1.8])
def test_repetition_penalty_equals_transformers(penalty):
    tokens = torch.randint(0, 37, (5, 9), generator=torch.Generator().manual_seed(1))
    seen = torch.zeros(5, 37, dtype=torch.bool).scatter_(1, tokens, True)
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(tokens, _logits())
    assert torch.equal(penalise_repetition(_logits(), seen, penalty), theirs)


def test_zero_temperature_takes_the_likeliest():
    tokens, log_probs = choose(_logits(), SamplingConfig(temperature=0.0), None)
    assert torch.equal(tokens, _logits().argmax(-1))
    assert not log_probs.any()


def test_a_draw_depends_on_its_sample_and_number_but_not_on_its_row():
    logits = _logits(1).expand(6, -1)
    ids = torch.tensor([4, 9, 2, 11, 7, 2**40 + 3])
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    drawn = torch.stack([draw(logits, 5, ids, index) for index in range(20)])
    shuffled = torch.stack([draw(logits, 5, ids[order], index) for index in range(20)])
    assert torch.equal(drawn[:, order], shuffled)
    assert len({tuple(column) for column in drawn.T.tolist()}) == 6
    other = torch.stack([draw(logits, 6, ids, index) for index in range(20)])
    assert not torch.equal(drawn, other)


def test_numbers_that_are_made_together_are_those_of_one_draw_at_a_time():
    logits, ids = _logits(1).expand(3, -1), torch.tensor([4, 2**40 + 3, 7])
    numbers = torch.tensor([0, 5, 30])
    uniforms = Uniforms(5, ids, numbers)
    for more in range(40):  # beyond what is made at once
        assert torch.equal(pick(logits, uniforms.next()), draw(logits, 5, ids, numbers + more))


def test_draws_follow_the_distribution_and_never_take_an_impossible_token():
    logits = torch.tensor([[0.0, 1.0, -torch.inf, 2.0]])
    ids = torch.arange(20000)
    tokens = draw(logits.expand(20000, -1), 1, ids, 3)
    share = torch.bincount(tokens, minlength=4) / 20000
    assert share[2] == 0
    assert torch.allclose(share, logits[0].softmax(-1), atol=0.02)


def test_the_ends_of_the_unit_interval_fall_on_possible_tokens():
    words = torch.tensor([0, 2**32 - 1])
    uniform = unit_interval(words, words)
    assert 0 < uniform[0] < uniform[1] < 1
    logits = torch.tensor([[-torch.inf, 0.3, 0.1, 0.7, -torch.inf]]).expand(2, -1)
    assert pick(logits, uniform).tolist() == [1, 3]


def test_top_k_one_is_greedy_at_any_temperature():
    config = SamplingConfig(temperature=9.0, top_k=1)
    tokens, log_probs = choose(_logits(), config, _uniforms().next())
    assert torch.equal(tokens, _logits().argmax(-1))
    assert not log_probs.any()
