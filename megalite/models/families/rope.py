"""RoPE in published configs: ``rope_theta``, ``rope_scaling`` and the newer ``rope_parameters``."""

from typing import Any

from megalite.models.config import ModelConfig

KINDS = ("default", "linear", "dynamic", "llama3", "yarn")
# Their key: ours.
_NUMBERS = {
    "factor": "rope_scale",
    "original_max_position_embeddings": "rope_original_positions",
    "low_freq_factor": "rope_low_factor",
    "high_freq_factor": "rope_high_factor",
    "beta_fast": "rope_beta_fast",
    "beta_slow": "rope_beta_slow",
    "attention_factor": "rope_attention_factor",
    "truncate": "rope_truncate",
}
_KEYS = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": (
        "factor",
        "original_max_position_embeddings",
        "low_freq_factor",
        "high_freq_factor",
    ),
    "yarn": (
        "factor",
        "original_max_position_embeddings",
        "beta_fast",
        "beta_slow",
        "attention_factor",
        "truncate",
    ),
}
_ELSEWHERE = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
_ELSEWHERE |= {"finetuned"}  # YaRN's files: how they were trained, which changes nothing


def read_rope(theirs: dict[str, Any]) -> dict[str, Any]:
    """Our values of what a config says of RoPE.

    Raises:
        ValueError: it has a kind, or a key of one, that is not known, or contradicts itself.
    """
    new, old = theirs.get("rope_parameters") or {}, theirs.get("rope_scaling") or {}
    kind = _kind(new or old)
    if new and old and _kind(new) != _kind(old):
        raise ValueError(
            f"rope_parameters says {_kind(new)} and rope_scaling {_kind(old)}: keep one of them"
        )
    for key in sorted(new.keys() & old.keys() - _ELSEWHERE):
        if new[key] != old[key]:
            raise ValueError(
                f"{key} is {new[key]!r} in rope_parameters and {old[key]!r} in rope_scaling: keep "
                "one of them"
            )
    bases = {float(part["rope_theta"]) for part in (theirs, new, old) if part.get("rope_theta")}
    if len(bases) > 1:
        raise ValueError(f"rope_theta has two values, {' and '.join(map(str, sorted(bases)))}")
    said = {k: v for k, v in (new or old).items() if k not in _ELSEWHERE and v is not None}
    unknown = sorted(said.keys() - set(_KEYS[kind]))
    if unknown and kind != "default":
        raise ValueError(f"rope {kind} has {', '.join(unknown)}, which is not known")
    if kind != "default" and "factor" not in said:
        said["factor"] = _factor(theirs, said)
    values = {_NUMBERS[key]: said[key] for key in _KEYS[kind] if key in said}
    base = next(iter(bases), 10000.0)
    return values | {"rope_base": base, "rope_scaling": "linear" if kind == "default" else kind}


def _kind(rope: dict[str, Any]) -> str:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in KINDS:
        raise ValueError(f"rope type {kind!r}; {', '.join(KINDS)} are known")
    return str(kind)


def _factor(theirs: dict[str, Any], rope: dict[str, Any]) -> float:
    """Where a config gives both lengths and not their ratio."""
    first = rope.get("original_max_position_embeddings")
    if not first:
        raise ValueError("rope: must have factor or original_max_position_embeddings")
    return float(theirs["max_position_embeddings"]) / float(first)


def read_turned_share(theirs: dict[str, Any], default: float) -> float:
    """The share of a head that turns, under any of its names."""
    new = theirs.get("rope_parameters") or {}
    said = (
        new.get("partial_rotary_factor"),
        theirs.get("partial_rotary_factor"),
        theirs.get("rotary_pct"),
    )
    return float(next((share for share in said if share is not None), default))


def write_rope(config: ModelConfig) -> dict[str, Any]:
    """All keys that say it, older and newer, so that every version reads the same."""
    kind: str = config.rope_scaling
    if kind == "linear" and config.rope_scale == 1.0:
        kind = "default"
    said: dict[str, Any] = {}
    for key in _KEYS[kind]:
        value = getattr(config, _NUMBERS[key])
        if value or key not in ("original_max_position_embeddings", "attention_factor"):
            said[key] = value
    if kind in ("llama3", "yarn"):
        said["original_max_position_embeddings"] = config.rope_trained_positions
    turned = config.rotary / config.head_dim
    share = {} if turned == 1.0 else {"partial_rotary_factor": turned}
    return {
        "rope_theta": config.rope_base,
        "rope_scaling": {"rope_type": kind, "type": kind} | said if said else None,
        "rope_parameters": {"rope_theta": config.rope_base, "rope_type": kind} | said | share,
    }
