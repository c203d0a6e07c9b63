"""Continuous batching on our own models: what an answer depends on, and what it doesn't."""

from collections import Counter

import pytest
import torch

from megalite.distributed.mesh import Mesh, ParallelConfig
from megalite.engine.build import build_model
from megalite.generation.answer import Asked, answer
from megalite.generation.decoder import CachedDecoder
from megalite.generation.generate import Ending, generate
from megalite.generation.prompts import Prompt, batch_prompts
from megalite.generation.room import READ_ROWS
from megalite.generation.sampling import SamplingConfig
from megalite.models.config import ModelConfig
from megalite.models.outputs import LogProbs
from megalite.stages.rlhf.responses import respond
from megalite.stages.samples import decode_with
from tests.graphs import cpu_graphs

SHAPE = {"vocab_size": 61, "hidden_size": 24, "num_layers": 2, "num_heads": 4, "ffn_size": 40}
ENDS, PAD, LIMIT = {2, 3}, 0, 23
FAMILIES = {
    "llama": {"num_kv_heads": 2},
    "alibi": {"position": "alibi", "norm": "layer_norm", "gated": False},
    "window": {"windows": (5, 0), "num_kv_heads": 1},
    "capped": {"score_cap": 3.0},
    "t5": {"num_encoder_layers": 1, "position": "relative", "attention_scale": 1.0},
    "glm": {"rope_axes": 2, "hidden_size": 32},
}


def make(name):
    config = ModelConfig(init_std=0.4, **(SHAPE | FAMILIES[name]))
    return build_model(config, Mesh.single(), ParallelConfig(), seed=3)


def prompts_of(name, lengths=(17, 3, 40, 1, 16, 33, 5)):
    generator = torch.Generator().manual_seed(7)
    rows = [torch.randint(4, 61, (n,), generator=generator).tolist() for n in lengths]
    if name == "t5":
        return [Prompt([1], encoder_tokens=row) for row in rows]
    if name == "glm":
        places = [[(i, 0) for i in range(len(row))] for row in rows]
        return [
            Prompt(row, len(row) - 1, positions=at) for row, at in zip(rows, places, strict=True)
        ]
    return [Prompt(row, prefix=len(row) // 2) for row in rows]


def answers(model, prompts, ids, slots=3, **more):
    config = SamplingConfig(**({"max_new_tokens": LIMIT, "seed": 5} | more))
    asked = Asked(prompts, ids, slots)
    return answer(decode_with(model), asked, config, Ending(ENDS, PAD))


@pytest.mark.parametrize("name", FAMILIES)
def test_answers_equal_those_of_one_padded_batch(name):
    model, prompts = make(name), prompts_of(name)
    config = SamplingConfig(max_new_tokens=LIMIT, seed=5)
    batch = batch_prompts(prompts, range(7), PAD)
    decoder = CachedDecoder(decode_with(model), batch, LIMIT)
    whole = generate(decoder, batch, config, Ending(ENDS, PAD))
    ours = answers(model, prompts, range(7))
    assert torch.equal(ours.tokens, whole.tokens)
    assert torch.equal(ours.lengths, whole.lengths)
    assert torch.equal(ours.ended, whole.ended)
    assert ours.ended.any()
    assert torch.allclose(ours.log_probs, whole.log_probs, atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_no_bit_of_an_answer_depends_on_slots_batch_or_order(name):
    model, prompts = make(name), prompts_of(name)
    whole = answers(model, prompts, range(7), slots=4)
    for chosen, slots in (([4], 1), ([6, 4, 0, 2], 2), ([5, 3, 2, 1, 0], 7)):
        part = answers(model, [prompts[i] for i in chosen], chosen, slots)
        for row, number in enumerate(chosen):
            assert part.answer(row) == whole.answer(number)
            length = len(part.answer(row))
            assert torch.equal(part.log_probs[row, :length], whole.log_probs[number, :length])


@pytest.mark.parametrize("name", FAMILIES)
def test_passes_of_always_as_many_rows_become_one_launch(monkeypatch, name):
    """As on a GPU: one graph while answers come and go, of which no bit depends on it."""
    model, prompts = make(name), prompts_of(name)
    plain = answers(model, prompts, range(7), slots=4)
    monkeypatch.setattr("megalite.generation.slots.is_by_rows", lambda _like: False)
    made, steps, decode = cpu_graphs(monkeypatch), Counter(), decode_with(model)

    def counted(batch, cache, *output):
        steps[type(cache).__name__] += 1
        return decode(batch, cache, *output)

    config = SamplingConfig(max_new_tokens=LIMIT, seed=5)
    ours = answer(counted, Asked(prompts, range(7), 4), config, Ending(ENDS, PAD))
    assert torch.equal(ours.tokens, plain.tokens)
    assert torch.equal(ours.log_probs, plain.log_probs)
    assert steps["Stepping"] <= 3  # T5's first one makes memory
    (graph,) = made
    assert graph.launches > 15


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_log_probs_of_drawing_are_those_of_a_training_pass(name):
    model, prompts = make(name), prompts_of(name)
    drawn = answers(model, prompts, range(7), temperature=0.7)
    texts = [drawn.answer(i) for i in range(7)]
    responses = respond(prompts, texts, range(7), PAD)
    ((log_probs, _),) = model.evaluate([responses.batch], LogProbs(0.7))
    for row, text in enumerate(texts):
        passed = log_probs[row][responses.mask[row]]
        assert torch.allclose(drawn.log_probs[row, : len(text)], passed, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_several_answers_to_a_prompt_read_it_once_and_share_its_blocks(name):
    model, prompts = make(name), prompts_of(name)
    asked = [prompts[2], prompts[0], prompts[2], prompts[2], prompts[0]]
    alone = [answers(model, [p], [i]).answer(0) for i, p in enumerate(asked)]
    reads, decode = Counter(), decode_with(model)

    def counted(batch, cache, *output):
        reads[type(cache).__name__] += 1
        return decode(batch, cache, *output)

    config = SamplingConfig(max_new_tokens=LIMIT, seed=5)
    together = answer(counted, Asked(asked, range(5), 2), config, Ending(ENDS, PAD))
    assert [together.answer(i) for i in range(5)] == alone
    assert reads["Reading"] == 2


@pytest.mark.parametrize("name", FAMILIES)
def test_a_long_prompt_is_read_in_passes_that_give_what_one_gives(name):
    """The prefix of GLM's prompt, which is seen both ways, is read at once."""
    model, config = make(name), SamplingConfig(max_new_tokens=6, seed=5)
    prompts = prompts_of(name, lengths=(3, 2 * READ_ROWS + 9))
    if name == "t5":
        row = [5 + n % 40 for n in range(2 * READ_ROWS + 9)]
        prompts = [Prompt([1], encoder_tokens=row[:3]), Prompt(row, encoder_tokens=row[:50])]
    if name not in ("t5", "glm"):
        prompts = [Prompt(prompt.tokens, prefix=2) for prompt in prompts]
    decode, rows = decode_with(model), list[int]()

    def counted(batch, cache, *output):
        rows.append(batch.decoder.length)
        return decode(batch, cache, *output)

    ours = answer(counted, Asked(prompts, range(2), 2), config, Ending(ENDS, PAD))
    pieces = [2 * READ_ROWS + 8] if name == "glm" else [READ_ROWS, READ_ROWS, 8]
    assert rows[1 : 1 + len(pieces)] == pieces
    batch = batch_prompts(prompts, range(2), PAD)
    decoder = CachedDecoder(decode, batch, config.max_new_tokens)
    whole = generate(decoder, batch, config, Ending(ENDS, PAD))
    assert torch.equal(ours.tokens, whole.tokens)
    assert torch.allclose(ours.log_probs, whole.log_probs, atol=1e-4)
