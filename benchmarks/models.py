"""The models of the train-step benchmark, ours and in transformers, alike in every size."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from megalite.models.batch import Batch, Stream
from megalite.models.config import ModelConfig
from megalite.ops.mask import causal, full

LAYERS, WIDTH, HEADS, VOCABULARY, POSITIONS = 6, 512, 8, 32000, 1024


@dataclass(frozen=True)
class Case:
    """One family.

    Attributes:
        ours: our config.
        peer: makes the model in transformers.
        is_encoder_decoder: both streams have the batch's length.
    """

    ours: Callable[[], ModelConfig]
    peer: Callable[[], Any]
    is_encoder_decoder: bool = False

    def batches(self, size: int, length: int) -> list[Batch]:
        """Our micro-batch: every row has a target."""
        tokens = random_tokens(size, length + 1, 1)
        mask = causal(size, length)
        positions = torch.arange(length, dtype=torch.int32).expand(size, length)
        encoder = cross = None
        if self.is_encoder_decoder:
            cross = full(size, length, length)
            encoder = Stream(random_tokens(size, length, 2), positions, cross)
        decoder = Stream(tokens[:, :-1], positions, mask)
        return [Batch(decoder, tokens[:, 1:], torch.arange(size), encoder=encoder, cross=cross)]

    def peer_batches(self, size: int, length: int) -> list[dict[str, torch.Tensor]]:
        """The same amount of work for transformers."""
        if self.is_encoder_decoder:
            tokens = random_tokens(size, length, 2)
            return [{"input_ids": tokens, "labels": random_tokens(size, length, 1)}]
        tokens = random_tokens(size, length, 1)
        return [{"input_ids": tokens, "labels": tokens}]


def random_tokens(size: int, length: int, seed: int) -> torch.Tensor:
    """Token numbers above the special ones."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(5, VOCABULARY, (size, length), generator=generator)


def _shape(**more: Any) -> ModelConfig:
    sizes = {"hidden_size": WIDTH, "num_layers": LAYERS, "num_heads": HEADS}
    return ModelConfig(**({**sizes, "vocab_size": VOCABULARY, "max_positions": POSITIONS} | more))


def _ours_llama() -> ModelConfig:
    return _shape(ffn_size=1376, tie_embeddings=False)


def _peer_llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=1376,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=POSITIONS,
        use_cache=False,
    )
    return LlamaForCausalLM(config)


_WITH_BIASES = {
    "norm": "layer_norm",
    "gated": False,
    "qkv_bias": True,
    "attention_bias": True,
    "ffn_bias": True,
    "ffn_size": 4 * WIDTH,
}


def _ours_gpt2() -> ModelConfig:
    return _shape(position="learned", activation="gelu_tanh", **_WITH_BIASES)


def _peer_gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        n_positions=POSITIONS,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
    )
    return GPT2LMHeadModel(config)


def _ours_bloom() -> ModelConfig:
    choices = {"position": "alibi", "activation": "gelu_tanh", "embedding_norm": True}
    return _shape(**choices, **_WITH_BIASES)


def _peer_bloom() -> Any:
    from transformers import BloomConfig, BloomForCausalLM

    config = BloomConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, n_layer=LAYERS, n_head=HEADS, use_cache=False
    )
    return BloomForCausalLM(config)


def _ours_t5() -> ModelConfig:
    return _shape(
        num_encoder_layers=LAYERS,
        ffn_size=4 * WIDTH,
        gated=False,
        activation="relu",
        position="relative",
        attention_scale=1.0,
    )


def _peer_t5() -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=WIDTH,
        d_kv=WIDTH // HEADS,
        d_ff=4 * WIDTH,
        num_layers=LAYERS,
        num_heads=HEADS,
        dropout_rate=0.0,
        decoder_start_token_id=0,
        use_cache=False,
    )
    return T5ForConditionalGeneration(config)


def _ours_bart() -> ModelConfig:
    return _shape(
        num_encoder_layers=LAYERS,
        position="learned",
        position_offset=2,
        activation="gelu",
        norm_position="post",
        final_norm=False,
        embedding_norm=True,
        **_WITH_BIASES,
    )


def _peer_bart() -> Any:
    from transformers import BartConfig, BartForConditionalGeneration

    config = BartConfig(
        vocab_size=VOCABULARY,
        d_model=WIDTH,
        encoder_layers=LAYERS,
        decoder_layers=LAYERS,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        encoder_ffn_dim=4 * WIDTH,
        decoder_ffn_dim=4 * WIDTH,
        max_position_embeddings=POSITIONS,
        dropout=0.0,
        use_cache=False,
    )
    return BartForConditionalGeneration(config)


CASES = {
    "llama": Case(_ours_llama, _peer_llama),
    "gpt2": Case(_ours_gpt2, _peer_gpt2),
    "bloom": Case(_ours_bloom, _peer_bloom),
    "t5": Case(_ours_t5, _peer_t5, is_encoder_decoder=True),
    "bart": Case(_ours_bart, _peer_bart, is_encoder_decoder=True),
}
