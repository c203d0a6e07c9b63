"""Tiny models of every structure, and batches for them."""

import torch

from megalite.models.batch import Batch, Stream
from megalite.models.config import ModelConfig
from megalite.ops import mask as masks

VOCABULARY, LENGTH, ENCODER_LENGTH, SAMPLES = 97, 11, 7, 8

_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "num_layers": 4,
    "num_heads": 4,
    "ffn_size": 40,
    "max_positions": 16,
    "dropout": 0.1,
    "attention_dropout": 0.1,
}
_BIASED = {
    "norm": "layer_norm",
    "gated": False,
    "activation": "gelu",
    "qkv_bias": True,
    "attention_bias": True,
    "ffn_bias": True,
}
MODELS = {
    "llama": {"num_kv_heads": 2, "tie_embeddings": False},
    "gpt": {"position": "learned", **_BIASED},
    "bloom": {"position": "alibi", "embedding_norm": True, **_BIASED},
    "glm": {
        "rope_axes": 2,
        "head_size": 8,
        "norm_position": "post",
        "residual_scale": 2.0,
        **_BIASED,
    },
    "t5": {
        "position": "relative",
        "attention_scale": 1.0,
        "num_encoder_layers": 3,
        "num_layers": 2,
    },
    "bart": {
        "position": "learned",
        "norm_position": "post",
        "embedding_norm": True,
        "final_norm": False,
        "num_encoder_layers": 2,
        "num_layers": 3,
        **_BIASED,
    },
}

# Options that MODELS don't have; they run in fewer layouts.
LATER = {
    "windows": {
        "num_kv_heads": 2,
        "head_size": 10,
        "windows": (3, 0),
        "rope_window_base": 100.0,
        "query_key_norm": True,
        "norm_position": "both",
        "norm_plus_one": True,
        "logit_cap": 4.0,
        "embedding_scale": 50.0,  # as large as what is added: roundings stay roundings
    },
}


def config(name: str) -> ModelConfig:
    """The config of one of ``MODELS`` or ``LATER``."""
    return ModelConfig(**(_SIZES | (MODELS | LATER)[name]))


def batch(name: str, step: int) -> Batch:
    """A step's global batch: packed documents, prefixes or two streams, some targets missing."""
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(0, VOCABULARY, (SAMPLES, LENGTH + 1), generator=generator)
    labels = tokens[:, 1:].clone()
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = -100
    rows = torch.arange(LENGTH, dtype=torch.int32).expand(SAMPLES, LENGTH)
    positions = rows
    if name == "glm":
        mask = masks.prefix(torch.randint(0, LENGTH, (SAMPLES,), generator=generator), LENGTH)
        positions = torch.stack((rows, rows // 2), -1)
    else:
        documents = [[4, 5] if name in ("llama", "windows") else [LENGTH]] * SAMPLES
        mask = masks.packed(documents, LENGTH)
    encoder = cross = None
    if name in ("t5", "bart"):
        shape = SAMPLES, ENCODER_LENGTH
        encoder = Stream(
            torch.randint(0, VOCABULARY, shape, generator=generator),
            torch.arange(ENCODER_LENGTH, dtype=torch.int32).expand(shape),
            masks.full(*shape, ENCODER_LENGTH),
        )
        cross = masks.cross(torch.full((SAMPLES,), 5), LENGTH, ENCODER_LENGTH)
    ids = torch.arange(SAMPLES) + SAMPLES * step
    decoder = Stream(tokens[:, :-1], positions, mask)
    return Batch(decoder, labels, ids, encoder=encoder, cross=cross)
