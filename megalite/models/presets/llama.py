"""Published sizes of LLaMA 1 to 3.3, Alpaca, Vicuna and Yi."""

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

_THIRD: dict[str, Any] = {
    "vocab_size": 128256,
    "norm_eps": 1e-5,
    "rope_base": 500000.0,
    "max_positions": 8192,
}
_STRETCHED = _THIRD | {
    "rope_scaling": "llama3",
    "rope_scale": 8.0,
    "rope_original_positions": 8192,
    "max_positions": 131072,
}
_THIRD_KEYS = "hidden_size num_layers num_heads num_kv_heads head_size ffn_size tie_embeddings"
_THIRD_SIZES = {
    "1b": (2048, 16, 32, 8, 64, 8192, True),
    "3b": (3072, 28, 24, 8, 128, 8192, True),
    "8b": (4096, 32, 32, 8, 128, 14336, False),
    "70b": (8192, 80, 64, 8, 128, 28672, False),
    "405b": (16384, 126, 128, 8, 128, 53248, False),
}
_YI: dict[str, Any] = {"vocab_size": 64000, "rope_base": 5000000.0, "tie_embeddings": False}
_YI_SIZES = {
    "yi-6b": (4096, 32, 32, 4, 11008, 1e-5),
    "yi-34b": (7168, 60, 56, 8, 20480, 1e-5),
    "yi-1.5-6b": (4096, 32, 32, 4, 11008, 1e-6),
    "yi-1.5-9b": (4096, 48, 32, 4, 11008, 1e-6),
    "yi-1.5-34b": (7168, 60, 56, 8, 20480, 1e-6),
}


def _presets(source: str, base: dict[str, Any], names: dict[str, str]) -> dict[str, Preset]:
    return sizes(source, base, _KEYS, {name: _SIZES[size] for name, size in names.items()})


def _third(version: str, base: dict[str, Any], *names: str) -> dict[str, Preset]:
    source = f"arXiv:2407.21783 table 3, config.json of meta-llama/Llama-{version}-*"
    rows = {f"llama{version}-{size}": _THIRD_SIZES[size] for size in names}
    return sizes(source, base, _THIRD_KEYS, rows)


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
    **_third("3", _THIRD, "8b", "70b"),
    **_third("3.1", _STRETCHED, "8b", "70b", "405b"),
    **_third("3.2", _STRETCHED | {"rope_scale": 32.0}, "1b", "3b"),
    **_third("3.3", _STRETCHED, "70b"),
    **sizes(
        "arXiv:2403.04652 table 1, config.json of 01-ai/Yi-*",
        _YI | {"max_positions": 4096},
        f"{_KEYS} norm_eps",
        _YI_SIZES,
    ),
    **sizes("for tests", BASE, _KEYS, {"llama-tiny": (64, 2, 4, 2, 96)}),
}
