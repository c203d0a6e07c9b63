"""``--scale``: a recipe for a laptop, with the shapes of its curves, ramps, losses and mixtures.

The model becomes tiny in its own structure and the run so many times shorter. A step has fewer
samples by one factor, a ramp's too, and lengths in samples and tokens shrink with it, so that every
step of the short run is at the same place of the curves as its like in the whole one. The layout is
one of a single process. Vocabulary, rates and weights of losses stay.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from megalite.config.bases import Based
from megalite.config.course import TO
from megalite.errors import ConfigError
from megalite.models.config import ModelConfig

WIDTH, HEADS, LAYERS = 64, 4, 2
LONGEST = 64  # tokens of a sequence of text
ROWS, ANSWER = 512, 16  # tokens of a conversation or a prompt, and of a PPO's answer, at most
LARGEST = 16  # samples of a step
MICRO = 4  # samples of a forward pass, where a step always has as many
AMOUNT = re.compile(r"([\d_.]+[KMBT]?)\s*(steps?|samples?|tokens?)", re.IGNORECASE)
_FACTORS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


def change_to(scale: str) -> Callable[[Based], dict[str, Any]]:
    """What makes a scaled recipe's values of a recipe's.

    Raises:
        ConfigError: the scale is no number above 0 and up to 1.
    """
    try:
        number = float(scale)
    except ValueError:
        number = 0.0
    if not 0 < number <= 1:
        raise ConfigError(
            f"--scale {scale}: must be a number above 0, up to 1, such as 0.001, which makes a "
            "thousandth of the steps of a tiny model"
        )
    return lambda based: scaled(based, number)


def scaled(based: Based, scale: float) -> dict[str, Any]:
    """A recipe's values for a laptop; see this module."""
    values, stage = based.values, based.recipe.get("stage")
    result = {key: value for key, value in values.items() if key != "parallel"}
    fewer_rows, train = 1.0, dict(values.get("train", {}))
    if stage == "pretrain":
        result["data"], fewer_rows = _short(values.get("data", {}), LONGEST)
    else:
        result["data"], _ = _short(values.get("data", {}), ROWS)
    if stage != "ppo":  # whose models are those of its checkpoints
        result["model"] = tiny(values.get("model", {}))
    divisor = max(train.get("global_batch_size", 8) / LARGEST, 1.0)
    factors = {
        "step": scale,
        "sample": scale / divisor,
        "token": scale / divisor * fewer_rows,
    }
    result["train"] = _train(train, divisor, factors)
    if stage == "ppo":  # an update has a part of a step's samples
        result["train"]["micro_batch_size"] = 1
    for section in ("schedule", "kl", "update"):
        if section in values:
            result[section] = _shrunk(values[section], factors)
    if "rollout" in values:
        result["rollout"] = {**values["rollout"], "max_new_tokens": ANSWER}
    if "pretraining" in values:
        result["pretraining"], _ = _short(values["pretraining"], LONGEST)
    return result


def tiny(model: Mapping[str, Any]) -> dict[str, Any]:
    """A model of the same structure that a laptop trains.

    Args:
        model: the table ``[model]``.
    """
    whole = ModelConfig(**model)
    groups = {whole.num_heads: 0, 1: 1}.get(whole.kv_heads, 2)
    unit = 2 * whole.rope_axes  # of dimensions that are rotated
    rotary = unit * round(WIDTH // HEADS * whole.rotary_size / whole.head_dim / unit)
    sizes: dict[str, Any] = {
        "hidden_size": WIDTH,
        "num_layers": LAYERS,
        "num_heads": HEADS,
        "num_kv_heads": groups,
        "head_size": WIDTH // HEADS if whole.head_size else 0,
        "rotary_size": max(rotary, unit) if whole.rotary_size else 0,
        "ffn_size": max(8, 8 * round(WIDTH * whole.ffn_size / whole.hidden_size / 8)),
        "embedding_size": WIDTH // 2 if whole.embedding_size else 0,
        "num_encoder_layers": LAYERS if whole.num_encoder_layers else 0,
    }
    return {**model, **sizes}


def _short(data: Mapping[str, Any], most: int) -> tuple[dict[str, Any], float]:
    """Sequences of at most so many tokens, and the tokens of one beside those of the whole."""
    length = data.get("sequence_length", most)
    if length <= most:
        return dict(data), 1.0
    short = {**data, "sequence_length": most}
    if data.get("encoder_length"):
        short["encoder_length"] = max(most * data["encoder_length"] // length, 8)
    return short, most / length


def _train(
    train: Mapping[str, Any], divisor: float, factors: Mapping[str, float]
) -> dict[str, Any]:
    """``[train]`` with fewer steps and samples."""
    result = dict(train)
    if "global_batch_size" in train:
        result["global_batch_size"] = round(train["global_batch_size"] / divisor)
    for key, unit in (("steps", "step"), ("samples", "sample"), ("tokens", "token")):
        if train.get(key):
            result[key] = max(round(_number(train[key]) * factors[unit]), 1)
    if "batch_ramp" in train:
        result["batch_ramp"] = _ramp(train["batch_ramp"], divisor, factors)
    has_ramp, size = "batch_ramp" in train, result.get("global_batch_size", 8)
    result["micro_batch_size"] = 1 if has_ramp or size % MICRO else MICRO
    for key in ("max_grad_norm", "embedding_gradient", "dropout_until"):
        if key in train:
            result[key] = _shrunk(train[key], factors)
    if "skip" in train:
        result["skip"] = [_skip(first, end, factors) for first, end in train["skip"]]
    return result


def _skip(
    first: int | str, end: int | str, factors: Mapping[str, float]
) -> tuple[int | str, int | str]:
    """A range of the run's order that skips something still."""
    begins, ends = _place(first, factors), _place(end, factors)
    if begins != ends:
        return begins, ends
    if isinstance(ends, int):
        return begins, ends + 1
    number, unit = ends.split()
    return begins, f"{int(number) + 1} {unit}"


def _place(told: int | str, factors: Mapping[str, float]) -> int | str:
    """A place of the run: a number of samples, or an amount."""
    return _amount(told, factors) if isinstance(told, str) else _at(told, factors["sample"])


def _ramp(ramp: Mapping[str, Any], divisor: float, factors: Mapping[str, float]) -> dict[str, Any]:
    """A ramp as long as before in proportion, by even numbers of samples: coarser, as steep."""
    result = _shrunk(ramp, factors)
    if "start" in ramp:
        result |= {"start": _even(ramp["start"] / divisor), "increment": 2}
    if "sizes" in ramp:
        places = (_amount(place, factors) for place in ramp["sizes"])
        counts = (_even(size / divisor) for size in ramp["sizes"].values())
        result["sizes"] = dict(zip(places, counts, strict=True))
    return result


def _even(number: float) -> int:
    return max(2 * round(number / 2), 2)


def _shrunk(table: Any, factors: Mapping[str, float]) -> Any:
    """A table, or a list of them, whose amounts in steps, samples and tokens are smaller."""
    if isinstance(table, Mapping):
        return {_key(key, factors): _shrunk(value, factors) for key, value in table.items()}
    if isinstance(table, list):
        return [_shrunk(value, factors) for value in table]
    return _amount(table, factors) if isinstance(table, str) else table


def _key(key: str, factors: Mapping[str, float]) -> str:
    """A key, which is a place in a table of values that change: ``to 350 steps``."""
    is_line = key.startswith(TO)
    return f"{TO if is_line else ''}{_amount(key.removeprefix(TO), factors)}"


def _amount(text: str, factors: Mapping[str, float]) -> str:
    """An amount such as ``2000 steps``, smaller; other text as it is."""
    found = AMOUNT.fullmatch(text.strip())
    if found is None:
        return text
    unit = found[2].lower().removesuffix("s")
    return f"{_at(_number(found[1]), factors[unit])} {unit}s"


def _at(number: float, factor: float) -> int:
    """A number made smaller; what is not 0 stays at least 1."""
    return max(round(number * factor), 1) if number else 0


def _number(told: int | str) -> float:
    """A number that may have K, M, B or T behind it."""
    text = str(told).replace("_", "")
    digits = text.rstrip("KMBTkmbt")
    return float(digits) * _FACTORS[text[len(digits) :].upper()]
