"""Published sizes of LLaMA 1 and 2, Alpaca and Vicuna."""

from typing import Any

from megalite.models.presets.preset import Preset, sizes

BASE: dict[str, Any] = {"vocab_size": 32000, "tie_embeddings": False}
_KEYS = "hidden_size num_layers num_heads num_kv_heads ffn_size"
_SIZES = {
    "7b": (4096, 32, 32, 0, 11008),
    "13b": (5120, 40, 40, 0, 13824),
    "30b": (6656, 60, 52, 0, 17920),
    "65b": (8192, 80, 64, 0, 22016),
    "70b": (8192, 80, 64, 8, 28672),
}
_FIRST = BASE | {"norm_eps": 1e-6, "max_positions": 2048}
_SECOND = BASE | {"norm_eps": 1e-5, "max_positions": 4096}


def _presets(source: str, base: dict[str, Any], names: dict[str, str]) -> dict[str, Preset]:
    return sizes(source, base, _KEYS, {name: _SIZES[size] for name, size in names.items()})


PRESETS = {
    **_presets(
        "arXiv:2302.13971 table 2, and config.json of huggyllama's copies",
        _FIRST,
        {f"llama-{size}": size for size in ("7b", "13b", "30b", "65b")},
    ),
    **_presets(
        "arXiv:2307.09288, config.json of meta-llama/Llama-2-*-hf",
        _SECOND,
        {f"llama2-{size}": size for size in ("7b", "13b", "70b")},
    ),
    **_presets(
        "tatsu-lab/stanford_alpaca: LLaMA with a padding token; its prompts: template alpaca",
        _FIRST | {"vocab_size": 32001},
        {f"alpaca-{size}": size for size in ("7b", "13b")},
    ),
    **_presets(
        "lm-sys/FastChat docs/vicuna_weights_version.md, v1.3; its prompts: template vicuna",
        _FIRST,
        {"vicuna-7b": "7b", "vicuna-13b": "13b", "vicuna-33b": "30b"},
    ),
    **_presets(
        "lm-sys/FastChat docs/vicuna_weights_version.md, v1.5, of Llama 2",
        _SECOND,
        {"vicuna-7b-v1.5": "7b", "vicuna-13b-v1.5": "13b"},
    ),
    **sizes("for tests", BASE, _KEYS, {"llama-tiny": (64, 2, 4, 2, 96)}),
}
