"""Tiny models of every structure, and batches for them."""

import torch

from megalite.models.batch import Batch, Stream
from megalite.models.config import ModelConfig
from megalite.models.presets import PRESETS
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


def config(name: str) -> ModelConfig:
    """The config of one of ``MODELS``, or of a preset with windows that are narrow here."""
    if name in PRESETS:
        windows = tuple(width and 3 for width in PRESETS[name].values.get("windows", ()))
        sizes = {"vocab_size": VOCABULARY, "max_positions": 16, "windows": windows}
        return ModelConfig(preset=name, **sizes)
    return ModelConfig(**(_SIZES | MODELS[name]))


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
        documents = [[4, 5] if name not in MODELS or name == "llama" else [LENGTH]] * SAMPLES
        mask = masks.packed(documents, LENGTH)
    encoder = cross = None
    if config(name).is_encoder_decoder:
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
