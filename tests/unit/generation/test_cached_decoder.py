"""Decoding with a cache on the weights of real Hugging Face models, computed from row intervals."""

import pytest
import torch
from torch.nn.functional import gelu, layer_norm, linear
from transformers import BartConfig, BartForConditionalGeneration, GPT2Config, GPT2LMHeadModel

from megalite.generation.beam import BeamConfig, BeamSearch
from megalite.generation.cache import Cache
from megalite.generation.decoder import CachedDecoder
from megalite.generation.generate import Ending, generate
from megalite.generation.prompts import Prompt, batch_prompts
from megalite.generation.sampling import SamplingConfig

VOCABULARY, END, PAD, LIMIT, HEADS = 61, 2, 0, 12, 3
TOKENS = {"vocab_size": VOCABULARY, "eos_token_id": END, "pad_token_id": PAD, "bos_token_id": 1}
LENGTHS = (7, 3, 5, 1)


def attend(q, k, v, start, end):
    """Attention over intervals: q [B, S, D], k and v [B, K, N, H], start and end [B, S]."""
    batch, rows, width = q.shape
    q = q.view(batch, rows, HEADS, -1)
    column = torch.arange(k.shape[1])
    seen = (column >= start[..., None]) & (column < end[..., None])
    scores = torch.einsum("bsnh,bknh->bnsk", q, k) / q.shape[-1] ** 0.5
    scores = scores.masked_fill(~seen[:, None], -torch.inf)
    out = torch.einsum("bnsk,bknh->bsnh", scores.softmax(-1).nan_to_num(0.0), v)
    return out.reshape(batch, rows, width)


def heads(x):
    return x.view(*x.shape[:2], HEADS, -1)


def norm(x, module):
    return layer_norm(x, x.shape[-1:], module.weight, module.bias)


def gpt2_forward(model):
    def forward(batch, cache: Cache):
        body = model.transformer
        x = body.wte.weight[batch.decoder.tokens] + body.wpe.weight[batch.decoder.positions.long()]
        for number, block in enumerate(body.h):
            q, k, v = block.attn.c_attn(norm(x, block.ln_1)).chunk(3, -1)
            k, v = cache.extend(f"decoder.{number}", heads(k), heads(v))
            x = x + block.attn.c_proj(
                attend(q, k, v, batch.decoder.mask.start, batch.decoder.mask.end)
            )
            x = x + block.mlp(norm(x, block.ln_2))
        return linear(norm(x, body.ln_f), body.wte.weight)

    return forward


def bart_forward(model):
    def cross(attention, states):
        return heads(attention.k_proj(states)), heads(attention.v_proj(states))

    def encode(batch):
        mask = (batch.encoder.mask.end > 0).long()
        return model.get_encoder()(batch.encoder.tokens, attention_mask=mask).last_hidden_state

    def forward(batch, cache: Cache):
        body = model.model.decoder
        states = encode(batch) if batch.encoder is not None else None
        x = model.model.shared.weight[batch.decoder.tokens]
        x = norm(
            x + body.embed_positions.weight[batch.decoder.positions.long() + 2],
            body.layernorm_embedding,
        )
        for number, block in enumerate(body.layers):
            own, other = block.self_attn, block.encoder_attn
            k, v = cache.extend(f"decoder.{number}", heads(own.k_proj(x)), heads(own.v_proj(x)))
            seen = attend(own.q_proj(x), k, v, batch.decoder.mask.start, batch.decoder.mask.end)
            x = norm(x + own.out_proj(seen), block.self_attn_layer_norm)
            k, v = cache.once(f"decoder.{number}", lambda other=other: cross(other, states))
            read = attend(other.q_proj(x), k, v, batch.cross.start, batch.cross.end)
            x = norm(x + other.out_proj(read), block.encoder_attn_layer_norm)
            x = norm(x + block.fc2(gelu(block.fc1(x))), block.final_layer_norm)
        return linear(x, model.model.shared.weight)

    return forward


def _model(name):
    torch.manual_seed(5)
    if name == "gpt2":
        config = GPT2Config(
            n_embd=24, n_layer=2, n_head=HEADS, activation_function="gelu", **TOKENS
        )
        model = GPT2LMHeadModel(config)
    else:
        config = BartConfig(
            d_model=24,
            encoder_layers=1,
            decoder_layers=2,
            encoder_ffn_dim=40,
            decoder_ffn_dim=40,
            encoder_attention_heads=HEADS,
            decoder_attention_heads=HEADS,
            decoder_start_token_id=END,
            forced_eos_token_id=None,
            **TOKENS,
        )
        model = BartForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.dim() > 1 else 1)  # sharp enough to be no lottery
    return model.eval()


def _case(name):
    """A model, its Hugging Face inputs, our prompts, and how many decoder tokens are given."""
    model = _model(name)
    tokens = torch.randint(3, VOCABULARY, (4, 7), generator=torch.Generator().manual_seed(7))
    rows = [tokens[row, :length].tolist() for row, length in enumerate(LENGTHS)]
    if name == "gpt2":
        batch = batch_prompts([Prompt(row) for row in rows], range(4), PAD)
        return (
            model,
            gpt2_forward(model),
            batch,
            batch.decoder.tokens,
            (batch.decoder.mask.end > 0).long(),
            7,
        )
    batch = batch_prompts([Prompt([END], encoder_tokens=row) for row in rows], range(4), PAD)
    mask = (batch.encoder.mask.end > 0).long()
    return model, bart_forward(model), batch, batch.encoder.tokens, mask, 1


def _expected(row):
    return row[: row.index(END) + 1] if END in row else row


@pytest.mark.parametrize("name", ["gpt2", "bart"])
def test_greedy_decoding_with_a_cache_equals_transformers_on_ragged_prompts(name):
    model, forward, batch, tokens, mask, given = _case(name)
    theirs = model.generate(
        tokens, attention_mask=mask, max_new_tokens=LIMIT, do_sample=False, num_beams=1
    )
    decoder = CachedDecoder(forward, batch, LIMIT)
    config = SamplingConfig(max_new_tokens=LIMIT, temperature=0.0)
    ours = generate(decoder, batch, config, Ending({END}, PAD))
    for row, expected in enumerate(theirs[:, given:].tolist()):
        assert ours.answer(row) == _expected(expected)


@pytest.mark.parametrize("name", ["gpt2", "bart"])
def test_beam_search_reorders_the_cache_as_transformers_does(name):
    model, forward, batch, tokens, mask, given = _case(name)
    theirs = model.generate(
        tokens, attention_mask=mask, max_new_tokens=LIMIT, do_sample=False, num_beams=3
    )
    decoder = CachedDecoder(forward, batch, LIMIT)
    ours = BeamSearch(decoder, BeamConfig(num_beams=3), Ending({END}, PAD), LIMIT).run()
    for row, expected in enumerate(theirs[:, given:].tolist()):
        assert ours.answer(row) == _expected(expected)


@pytest.mark.parametrize("name", ["gpt2", "bart"])
def test_logits_with_a_cache_equal_those_of_the_whole_rows(name):
    _, forward, batch, *_ = _case(name)
    decoder = CachedDecoder(forward, batch, 3)
    decoder.start()
    following = torch.tensor([[4, 5, 6, 7], [8, 9, 10, 11]])
    cached = [decoder.advance(column) for column in following]
    rows = [batch.decoder.tokens[i, batch.decoder.mask.end[i] > 0].tolist() for i in range(4)]
    sources = [[]] * 4
    if batch.encoder is not None:
        sources = [
            batch.encoder.tokens[i, batch.encoder.mask.end[i] > 0].tolist() for i in range(4)
        ]
    for step in (1, 2):
        longer = [
            Prompt([*row, *following[:step, i].tolist()], encoder_tokens=sources[i])
            for i, row in enumerate(rows)
        ]
        whole = CachedDecoder(forward, batch_prompts(longer, range(4), PAD), 0).start()
        assert torch.allclose(cached[step - 1], whole, atol=1e-4)


def test_a_prefix_stays_bidirectional_under_the_cache():
    model = _model("gpt2")
    forward = gpt2_forward(model)
    prompt, more = [5, 6, 7, 8], [9, 10]
    decoder = CachedDecoder(forward, batch_prompts([Prompt(prompt, prefix=4)], [0]), 2)
    decoder.start()
    cached = [decoder.advance(torch.tensor([token])) for token in more]
    whole = batch_prompts([Prompt(prompt + more, prefix=4)], [0])
    causal = batch_prompts([Prompt(prompt + more)], [0])
    assert torch.allclose(cached[-1], CachedDecoder(forward, whole, 0).start(), atol=1e-4)
    assert not torch.allclose(cached[-1], CachedDecoder(forward, causal, 0).start(), atol=1e-2)
