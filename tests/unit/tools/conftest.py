"""Tiny models that were saved by transformers, with a tokenizer of bytes."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

TEMPLATE = (
    "{% for m in messages %}{{ '[' + m.role + ']' + m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)


def letters() -> Tokenizer:
    """Tokens that are printable ASCII, the space and a few pairs: every answer can be read."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = [letter for letter in pre_tokenizers.ByteLevel.alphabet() if letter.isascii()]
    special = ["<|end|>", "<|pad|>"]
    trainer = trainers.BpeTrainer(
        special_tokens=special, initial_alphabet=[*alphabet, "\u0120"], show_progress=False
    )
    inner.train_from_iterator(["the red cat"], trainer)
    return inner


TOKENIZER = letters()
SIZE = TOKENIZER.get_vocab_size()


def save(model, folder: Path, template: str | None = None) -> Path:
    """Save a model with random weights and the tokenizer of letters."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    whole = PreTrainedTokenizerFast(
        tokenizer_object=TOKENIZER, eos_token="<|end|>", pad_token="<|pad|>", bos_token="<|end|>"
    )
    whole.chat_template = template
    whole.save_pretrained(folder)
    return folder


def gpt2(positions: int = 96) -> GPT2LMHeadModel:
    ids = {"bos_token_id": 0, "eos_token_id": 0}
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": positions}
    return GPT2LMHeadModel(GPT2Config(vocab_size=SIZE, **sizes, **ids))


@pytest.fixture(scope="session")
def causal(tmp_path_factory) -> Path:
    """A GPT-2 with 96 positions and a chat template."""
    return save(gpt2(), tmp_path_factory.mktemp("causal"), TEMPLATE)


@pytest.fixture(scope="session")
def encoder_decoder(tmp_path_factory) -> Path:
    """A T5."""
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
    ids = {"pad_token_id": 1, "eos_token_id": 0, "decoder_start_token_id": 1}
    model = T5ForConditionalGeneration(T5Config(vocab_size=SIZE, n_positions=96, **sizes, **ids))
    return save(model, tmp_path_factory.mktemp("encoder_decoder"))
