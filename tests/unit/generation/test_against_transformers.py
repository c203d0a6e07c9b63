"""The generation loop and beam search around real Hugging Face models, against their own."""

import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    StoppingCriteria,
    StoppingCriteriaList,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.modeling_outputs import BaseModelOutput

from megalite.generation.beam import BeamConfig, BeamSearch
from megalite.generation.generate import Ending, generate
from megalite.generation.sampling import Repetition, SamplingConfig
from megalite.models.batch import Batch, Stream
from megalite.ops import RowIntervals

VOCABULARY, END, PAD, LIMIT = 61, 2, 0, 12
TOKENS = {"vocab_size": VOCABULARY, "eos_token_id": END, "pad_token_id": PAD, "bos_token_id": 1}


class WholeDecoder:
    """Recomputes every row of a causal model, or of a decoder, for each token."""

    def __init__(self, model, tokens, mask, encoder=None):
        self.model, self.tokens, self.mask, self.encoder = model, tokens, mask, encoder

    @torch.inference_mode()
    def start(self):
        if self.encoder is not None:
            outputs = BaseModelOutput(last_hidden_state=self.encoder)
            return self.model(
                encoder_outputs=outputs, attention_mask=self.mask, decoder_input_ids=self.tokens
            ).logits[:, -1]
        positions = (self.mask.cumsum(1) - 1).clamp(min=0)
        return self.model(self.tokens, attention_mask=self.mask, position_ids=positions).logits[
            :, -1
        ]

    def advance(self, tokens):
        self.tokens = torch.cat((self.tokens, tokens[:, None]), 1)
        if self.encoder is None:
            self.mask = torch.cat((self.mask, torch.ones_like(tokens)[:, None]), 1)
        return self.start()

    def select(self, rows):
        self.tokens, self.mask = self.tokens[rows], self.mask[rows]
        if self.encoder is not None:
            self.encoder = self.encoder[rows]


def _model(name: str):
    torch.manual_seed(3)
    small = {"d_model": 24, "num_heads": 3}
    if name == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(n_embd=24, n_layer=2, n_head=3, **TOKENS))
    elif name == "llama":
        sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
        model = LlamaForCausalLM(LlamaConfig(**sizes, **heads, **TOKENS))
    elif name == "t5":
        t5 = T5Config(d_kv=8, d_ff=40, num_layers=2, decoder_start_token_id=PAD, **small, **TOKENS)
        model = T5ForConditionalGeneration(t5)
    else:
        sides = {"encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 40}
        heads = {"encoder_attention_heads": 3, "decoder_attention_heads": 3}
        bart = BartConfig(
            d_model=24,
            decoder_ffn_dim=40,
            decoder_start_token_id=END,
            forced_eos_token_id=None,
            **sides,
            **heads,
            **TOKENS,
        )
        model = BartForConditionalGeneration(bart)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.dim() > 1 else 1)  # sharp enough to be no lottery
    return model.eval()


def _case(name: str):
    model = _model(name)
    tokens = torch.randint(3, VOCABULARY, (4, 7), generator=torch.Generator().manual_seed(7))
    lengths = torch.tensor([7, 3, 5, 1])[:, None]
    column = torch.arange(7)
    if name in ("gpt2", "llama"):
        mask = (column >= 7 - lengths).long()
        tokens = tokens.masked_fill(mask == 0, PAD)
        return model, tokens, mask, WholeDecoder(model, tokens, mask), 7
    mask = (column < lengths).long()
    tokens = tokens.masked_fill(mask == 0, PAD)
    with torch.inference_mode():
        encoder = model.get_encoder()(tokens, attention_mask=mask).last_hidden_state
    first = torch.full((4, 1), model.config.decoder_start_token_id)
    return model, tokens, mask, WholeDecoder(model, first, mask, encoder), 1


def prompts(tokens, mask, first: int = 0) -> Batch:
    """What ``generate`` reads of prompts: their tokens, and which are padding."""
    end = mask.int() * tokens.shape[1]
    intervals = RowIntervals(torch.zeros_like(end), end, tokens.shape[1])
    ids = torch.arange(first, first + len(tokens))
    return Batch(Stream(tokens, end, intervals), torch.full_like(tokens, -100), ids)


def _same(answers, theirs, skipped: int) -> None:
    for row, expected in enumerate(theirs[:, skipped:].tolist()):
        if END in expected:
            expected = expected[: expected.index(END) + 1]
        assert answers.answer(row) == expected[: len(answers.answer(row))]
        assert all(token == PAD for token in expected[len(answers.answer(row)) :])


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "bart"])
def test_greedy_answers_equal_transformers(name):
    model, tokens, mask, decoder, skipped = _case(name)
    theirs = model.generate(
        tokens, attention_mask=mask, max_new_tokens=LIMIT, do_sample=False, num_beams=1
    )
    config = SamplingConfig(max_new_tokens=LIMIT, temperature=0.0)
    ours = generate(decoder, prompts(tokens, mask), config, Ending({END}, PAD))
    _same(ours, theirs, skipped)


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "bart"])
@pytest.mark.parametrize(
    ("beams", "penalty", "early"),
    [(2, 1.0, "heuristic"), (3, 2.0, "first"), (4, 0.5, "never"), (5, -0.5, "heuristic")],
)
def test_beam_search_equals_transformers(name, beams, penalty, early):
    model, tokens, mask, decoder, skipped = _case(name)
    stopping = {"heuristic": False, "first": True, "never": "never"}[early]
    theirs = model.generate(
        tokens,
        attention_mask=mask,
        max_new_tokens=LIMIT,
        do_sample=False,
        num_beams=beams,
        length_penalty=penalty,
        early_stopping=stopping,
    )
    config = BeamConfig(num_beams=beams, length_penalty=penalty, early_stopping=early)
    ours = BeamSearch(decoder, config, Ending({END}, PAD), LIMIT).run()
    _same(ours, theirs, skipped)


@pytest.mark.parametrize("beams", [1, 3])
def test_a_repetition_penalty_equals_transformers_with_beams_too(beams):
    """Of one prompt: transformers counts padding as a token that came before."""
    model, tokens, mask, _, _ = _case("gpt2")
    tokens, mask = tokens[:1], mask[:1]
    theirs = model.generate(
        tokens,
        attention_mask=mask,
        max_new_tokens=LIMIT,
        do_sample=False,
        num_beams=beams,
        repetition_penalty=1.7,
    )
    decoder, batch = WholeDecoder(model, tokens, mask), prompts(tokens, mask)
    if beams == 1:
        config = SamplingConfig(max_new_tokens=LIMIT, temperature=0.0, repetition_penalty=1.7)
        ours = generate(decoder, batch, config, Ending({END}, PAD))
    else:
        repetition = Repetition(batch.decoder, 1.7)
        config = BeamConfig(num_beams=beams)
        ours = BeamSearch(decoder, config, Ending({END}, PAD), LIMIT, repetition).run()
    _same(ours, theirs, 7)


class Letters(StoppingCriteria):
    """Ends a sequence of transformers' whose letters behind the prompt have a stop text."""

    def __init__(self, stop: str, skipped: int) -> None:
        self.stop, self.skipped = stop, skipped

    def __call__(self, input_ids, scores, **more):
        return torch.tensor([self.stop in letters(row[self.skipped :]) for row in input_ids])


def letters(ids) -> str:
    return "".join(chr(0x4E00 + int(token)) for token in ids)


@pytest.mark.parametrize("beams", [2, 3])
def test_a_stop_string_ends_a_beam_as_it_does_in_transformers(beams):
    model, tokens, mask, decoder, skipped = _case("llama")
    config, without = BeamConfig(num_beams=beams), Ending(set(), PAD)
    plain = BeamSearch(decoder, config, without, LIMIT).run()
    stop = letters(plain.answer(0)[3:5])
    theirs = model.generate(
        tokens,
        attention_mask=mask,
        max_new_tokens=LIMIT,
        do_sample=False,
        num_beams=beams,
        eos_token_id=None,
        stopping_criteria=StoppingCriteriaList([Letters(stop, skipped)]),
    )
    ending = Ending(set(), PAD, (stop,), letters)
    ours = BeamSearch(_case("llama")[3], config, ending, LIMIT).run()
    for row in range(len(tokens)):
        assert ours.answer(row) == theirs[row, skipped:].tolist()[: int(ours.lengths[row])]
    found = stop in letters(ours.answer(0))
    assert found == bool(ours.ended[0])
    assert ours.answer(0) != plain.answer(0) or found


def test_a_stop_string_ends_a_row_and_streams_what_came_before():
    _, tokens, mask, decoder, _ = _case("llama")
    config = SamplingConfig(max_new_tokens=LIMIT, temperature=0.0)
    batch = prompts(tokens, mask)
    plain = generate(decoder, batch, config, Ending(set(), PAD))
    letters = "".join(chr(0x4E00 + token) for token in plain.answer(0))
    pieces = {row: "" for row in range(4)}

    def collect(row: int, piece: str) -> None:
        pieces[row] += piece

    def decode(ids) -> str:
        return "".join(chr(0x4E00 + token) for token in ids)

    stop = letters[4:6]
    ending = Ending(set(), PAD, (stop,), decode, collect)
    stopped = generate(_case("llama")[3], batch, config, ending)
    first = letters.index(stop)
    assert pieces[0] == letters[:first]
    assert stopped.lengths[0] == first + 2
    assert stopped.ended[0]
    assert stopped.answer(0) == plain.answer(0)[: first + 2]


def test_sampled_answers_do_not_depend_on_what_else_is_in_the_batch():
    model, tokens, mask, decoder, _ = _case("gpt2")
    config = SamplingConfig(max_new_tokens=LIMIT, top_p=0.9, repetition_penalty=1.2, seed=4)
    ending = Ending({END}, PAD)
    whole = generate(decoder, prompts(tokens, mask, 10), config, ending)
    alone = WholeDecoder(model, tokens[2:3, 2:], mask[2:3, 2:])
    single = generate(alone, prompts(tokens[2:3, 2:], mask[2:3, 2:], 12), config, ending)
    assert single.answer(0) == whole.answer(2)
