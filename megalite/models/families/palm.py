"""PaLM and U-PaLM: parallel blocks, one key head, SwiGLU, no biases, one embedding for both ends.

Source: Chowdhery et al. 2022, arXiv:2204.02311; Tay et al. 2022, arXiv:2210.11399.
Google published no weights: the names are lucidrains/PaLM-pytorch's, where an attention and a
feed-forward of a block have a norm each; the paper's block has one.
"""

from typing import Any

from megalite.models.config import ModelConfig
from megalite.models.families.table import Entry, Family, same, stacked
from megalite.models.presets.palm import BASE, PRESETS


def _from_theirs(theirs: dict[str, Any]) -> ModelConfig:
    size = theirs["dim"]
    values: dict[str, Any] = {
        "vocab_size": theirs["num_tokens"],
        "hidden_size": size,
        "num_layers": theirs["depth"],
        "num_heads": theirs["heads"],
        "head_size": theirs["dim_head"],
        "ffn_size": round(size * theirs["ff_mult"]),
        "parallel_block": theirs.get("parallel_block", "two_norms"),
        "logit_scale": theirs.get("logit_scale", 1.0),
        "max_positions": theirs.get("max_seq_len", 2048),
    }
    return ModelConfig(**(BASE | values))


def _to_theirs(config: ModelConfig) -> dict[str, Any]:
    return {
        "num_tokens": config.vocab_size,
        "dim": config.hidden_size,
        "depth": config.num_layers,
        "heads": config.num_heads,
        "dim_head": config.head_dim,
        "ff_mult": config.ffn_size / config.hidden_size,
        "parallel_block": config.parallel_block,
        "logit_scale": config.logit_scale,
        "max_seq_len": config.max_positions,
    }


def _once(config: ModelConfig) -> list[Entry]:
    """A Sequential of the embedding, the blocks and a norm."""
    entries = [
        same("0.weight", "embedding.weight"),
        same(f"{config.num_layers + 1}.gamma", "decoder.norm.weight"),
    ]
    for i in range(config.num_layers):
        entries += _block(config, f"{i + 1}.fns.", f"decoder.layers.{i}.")
    return entries


def _block(config: ModelConfig, theirs: str, ours: str) -> list[Entry]:
    names = {
        "0.norm.gamma": "attention_norm.weight",
        "0.to_q.weight": "attention.query.weight",
        "0.to_out.weight": "attention.output.weight",
        "1.3.weight": "ffn.output.weight",
    }
    if config.parallel_block == "two_norms":
        names["1.0.gamma"] = "ffn_norm.weight"
    keys = f"{ours}attention.key.weight", f"{ours}attention.value.weight"
    inner = f"{ours}ffn.up.weight", f"{ours}ffn.gate.weight"
    return [
        *(same(theirs + a, ours + b) for a, b in names.items()),
        stacked(f"{theirs}0.to_kv.weight", *keys, sizes=lambda config: [config.head_dim] * 2),
        stacked(f"{theirs}1.1.weight", *inner, sizes=lambda config: [config.ffn_size] * 2),
    ]


FAMILY = Family(
    name="palm",
    architecture="PaLM",
    from_theirs=_from_theirs,
    to_theirs=_to_theirs,
    once=_once,
    layer=lambda _: [],
    ignored=("inv_freq", ".mask", ".pos_emb", ".position"),
    zero=("beta",),
    presets=PRESETS,
)
