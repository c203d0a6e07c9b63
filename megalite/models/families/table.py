"""How a family's published files relate to our parameters: a table of names and shapes."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from megalite.errors import ConfigError
from megalite.models.config import ModelConfig
from megalite.models.families.keys import Recorded, check_off, says_nothing
from megalite.models.families.windows import shortest_windows
from megalite.models.presets.preset import Preset

Split = Callable[[Tensor, ModelConfig], list[Tensor]]
Join = Callable[[list[Tensor], ModelConfig], Tensor]


def _as_it_is(tensor: Tensor, _config: ModelConfig) -> list[Tensor]:
    return [tensor]


def _only(tensors: list[Tensor], _config: ModelConfig) -> Tensor:
    return tensors[0]


@dataclass(frozen=True)
class Entry:
    """One tensor of theirs and what it is of ours.

    Attributes:
        theirs: its name; ``{i}`` is the layer's number.
        ours: our parameters' names; the split pieces go to them in order, each reshaped.
        split: their tensor to ours.
        join: ours, each reshaped to two dimensions where it had more (one for a bias), to theirs.
        is_transposed: whether their matrix is [inputs, out].
    """

    theirs: str
    ours: tuple[str, ...]
    split: Split = _as_it_is
    join: Join = _only
    is_transposed: bool = False


def same(theirs: str, ours: str) -> Entry:
    """An entry whose tensors differ in shape only."""
    return Entry(theirs, (ours,))


def transposed(theirs: str, ours: str) -> Entry:
    """An entry whose matrix is stored the other way round (GPT-2's Conv1D)."""
    return Entry(theirs, (ours,), lambda t, _: [t.t()], lambda ts, _: ts[0].t(), True)


def stacked(theirs: str, *ours: str, sizes: Callable[[ModelConfig], list[int]]) -> Entry:
    """An entry whose tensor holds ours one behind the other, each of so many rows."""
    return Entry(
        theirs,
        ours,
        lambda tensor, config: list(tensor.split(sizes(config))),
        lambda tensors, _: torch.cat(tensors),
    )


def pairs(theirs: str, ours: str, names: Mapping[str, str], *kinds: str) -> list[Entry]:
    """An entry for each pair of names and each kind, weight or bias; the prefixes stand first."""
    return [
        same(f"{theirs}{a}.{kind}", f"{ours}{b}.{kind}") for a, b in names.items() for kind in kinds
    ]


def qkv(layer: str, kind: str) -> tuple[str, ...]:
    """Our names of a layer's query, key and value."""
    return tuple(f"{layer}attention.{name}.{kind}" for name in ("query", "key", "value"))


def qkv_rows(config: ModelConfig) -> list[int]:
    """Rows of query, key and value."""
    keys = config.kv_heads * config.head_dim
    return [config.num_heads * config.head_dim, keys, keys]


# What decides how a model is trained, and not what it computes.
TRAINING = frozenset(
    {
        *("preset", "init_std", "scaled_init", "initial"),
        *("dropout", "dropout_by_layer", "embedding_dropout", "attention_dropout"),
    }
)


def decisive(config: ModelConfig) -> dict[str, Any]:
    """The values of a config that decide what the model computes, each in one form."""
    values = config.model_dump(exclude=set(TRAINING)) | {
        "num_kv_heads": config.kv_heads,
        "head_size": config.head_dim,
        "embedding_size": config.embedding_width,
        "attention_scale": config.scale,
        "rotary_size": config.rotary,
        "rope_original_positions": config.rope_trained_positions,
        "rope_window_base": _window_base(config),
        "windows": shortest_windows([config.window_of(i) for i in range(_deepest(config))]),
    }
    unread = {key for keys in _POSITIONS.values() for key in keys}
    unread -= set(_POSITIONS.get(config.position, ()))
    if config.position == "rope":
        unread |= {key for keys in _ROPE.values() for key in keys}
        unread -= set(_ROPE[config.rope_scaling])
    if config.norm == "rms_norm":
        unread.add("norm_bias")
    if config.head == "value":
        unread |= {"tie_embeddings", "normalised_head", "logit_scale", "logit_cap"}
    return {key: value for key, value in values.items() if key not in unread}


def _deepest(config: ModelConfig) -> int:
    return max(config.num_layers, config.num_encoder_layers)


def _window_base(config: ModelConfig) -> float:
    """The base of unstretched angles in layers with a window, 0 where there is no such thing."""
    if config.rope_window_base or not any(config.windows):
        return config.rope_window_base
    is_plain = config.rope_scaling == "linear" and config.rope_scale == 1.0
    return config.rope_base if is_plain else 0.0


# What a model reads of a kind of positions, and of a kind of RoPE's scaling, and others don't.
_POSITIONS = {
    "rope": (
        "rope_base",
        "rope_window_base",
        "rope_scaling",
        "rope_scale",
        "rope_interleaved",
        "rope_axes",
        "rotary_size",
        "rope_original_positions",
        "rope_low_factor",
        "rope_high_factor",
        "rope_beta_fast",
        "rope_beta_slow",
        "rope_truncate",
        "rope_attention_factor",
    ),
    "alibi": ("alibi_scale",),
    "relative": ("relative_buckets", "relative_max_distance"),
    "learned": ("max_positions", "position_offset"),
    "sinusoid": ("max_positions",),
}
_ROPE: dict[str, tuple[str, ...]] = {
    "linear": (),
    "dynamic": ("max_positions",),
    "llama3": ("rope_original_positions", "rope_low_factor", "rope_high_factor"),
    "yarn": (
        "rope_original_positions",
        "rope_beta_fast",
        "rope_beta_slow",
        "rope_truncate",
        "rope_attention_factor",
    ),
}


# What a config of theirs says of a reward model.
ONE_LABEL: dict[str, Any] = {
    "id2label": {"0": "reward"},
    "label2id": {"reward": 0},
    "problem_type": "regression",
}


@dataclass(frozen=True)
class Family:
    """A family of published models.

    Attributes:
        name: of the family.
        architecture: the class that loads it.
        is_scored: whether transformers has a class for reward models of it: the same blocks, and a
            matrix ``score.weight`` [1, D] that is read at the last token.
        from_theirs: their config to ours.
        to_theirs: our config to theirs, without ``fixed``.
        once: entries outside the layers.
        layer: entries of each decoder layer.
        encoder_layer: entries of each encoder layer.
        fixed: keys of their config that must have this value, which is also their default.
        model_type: of their config, where it is not the name.
        also: more model types that are read alike.
        marker: a key that, of those that share a model type, only this family's configs have.
        aliases: other names of keys of their config, and the ones that are read for them.
        ignored: endings of tensors of theirs that are no parameters.
        zero: endings of tensors of theirs that must be 0, as a model of ours has none.
        tied_by_files: names of a head and an embedding of which only the files tell whether they
            are one, as transformers 5 writes ``tie_word_embeddings`` true for every model.
        presets: its published sizes by name.
        sections: keys of their config that hold a config, and what reads it.
    """

    name: str
    architecture: str
    from_theirs: Callable[[dict[str, Any]], ModelConfig]
    to_theirs: Callable[[ModelConfig], dict[str, Any]]
    once: Callable[[ModelConfig], list[Entry]]
    layer: Callable[[ModelConfig], list[Entry]]
    encoder_layer: Callable[[ModelConfig], list[Entry]] = lambda _: []
    is_scored: bool = False
    fixed: Mapping[str, Any] = field(default_factory=dict)
    model_type: str = ""
    also: tuple[str, ...] = ()
    marker: str = ""
    aliases: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    zero: tuple[str, ...] = ()
    tied_by_files: tuple[str, str] | None = None
    presets: Mapping[str, Preset] = field(default_factory=dict)
    sections: Mapping[str, "Family"] = field(default_factory=dict)

    @property
    def scorer(self) -> str:
        """The class that loads a reward model; empty: there is none."""
        stem = self.architecture.removesuffix("ForCausalLM").removesuffix("LMHeadModel")
        return f"{stem}ForSequenceClassification" if self.is_scored else ""

    def knows(self, theirs: dict[str, Any]) -> bool:
        """Whether a config of theirs is of this family."""
        types = self.model_type or self.name, *self.also
        return theirs.get("model_type") in types and (not self.marker or self.marker in theirs)

    def read(self, theirs: dict[str, Any]) -> ModelConfig:
        """Their config as ours.

        Raises:
            KeyError: a key is missing.
            ValueError: a value is one that the family, or a model of ours, can't have.
            ConfigError: values don't fit each other.
        """
        theirs = self.canonical(theirs)
        for key, value in self.fixed.items():
            if theirs.get(key) not in (None, value):
                raise ValueError(f"{key} must be {json.dumps(value)} here, came {theirs[key]!r}")
        recorded = Recorded(theirs)
        config = self.from_theirs(recorded)
        check_off(theirs, recorded.read | self.fixed.keys())
        if not self.scorer or self.scorer not in (theirs.get("architectures") or ()):
            return config
        labels = theirs.get("id2label")
        count = len(labels) if labels else theirs.get("num_labels", 2)
        if count != 1:
            raise ValueError(f"{self.scorer} must have one label, as a reward is, came {count}")
        return config.model_copy(update={"head": "value", "head_bias": False})

    def unread(self, theirs: Mapping[str, Any]) -> list[str]:
        """Keys of a config that are neither read, nor fixed, nor known to change nothing."""
        canonical = self.canonical(theirs)
        recorded = Recorded(canonical)
        self.from_theirs(recorded)
        known = recorded.read | self.fixed.keys() | {self.marker}
        own = sorted(key for key in canonical.keys() - known if not says_nothing(key))
        parts = {name: part.unread(theirs[name]) for name, part in self.sections.items()}
        return own + [f"{name}.{key}" for name, keys in parts.items() for key in keys]

    def canonical(self, theirs: Mapping[str, Any]) -> dict[str, Any]:
        """Their config with each of its ``aliases`` under the name that is read.

        Raises:
            ValueError: a key and its alias contradict each other.
        """
        found = {key: value for key, value in theirs.items() if key not in self.aliases}
        for alias, key in self.aliases.items():
            value = theirs.get(alias)
            if value is None:
                continue
            if found.get(key) not in (None, value):
                raise ValueError(f"{key} is {found[key]!r} and {alias} is {value!r}: keep one")
            found[key] = value
        return found

    def write(self, config: ModelConfig) -> dict[str, Any]:
        """Our config as theirs."""
        is_scorer = config.head == "value"
        architecture = self.scorer if is_scorer else self.architecture
        head = {"model_type": self.model_type or self.name, "architectures": [architecture]}
        return head | dict(self.fixed) | self.to_theirs(config) | (ONE_LABEL if is_scorer else {})

    def lost(self, config: ModelConfig) -> list[str]:
        """The keys of a config whose values no model of this family can have."""
        try:
            again = decisive(self.read(self.write(config)))
        except KeyError as error:
            return [f"activation {error}"]
        except (ValueError, ConfigError) as error:
            return [f"sizes: {error}"]
        values = decisive(config)
        keys = values.keys() | again.keys()
        lost = {key for key in keys if values.get(key) != again.get(key)}
        if config.head == "value":  # a score there has no bias, and reads the embedding's width
            lost |= {"head_bias"} if config.head_bias else set()
            lost |= {"embedding_size"} if config.embedding_width != config.hidden_size else set()
        return sorted(lost)

    def entries(self, config: ModelConfig) -> Iterator[Entry]:
        """Every entry of a model, layers numbered."""
        is_scorer = config.head == "value"
        for entry in self.once(config):
            if not (is_scorer and entry.ours[0].startswith("head.")):
                yield entry
        if is_scorer:
            yield same("score.weight", "head.value.weight")
        for entries, count in (
            (self.encoder_layer(config), config.num_encoder_layers),
            (self.layer(config), config.num_layers),
        ):
            for i in range(count):
                for entry in entries:
                    theirs = entry.theirs.replace("{i}", str(i))
                    ours = tuple(name.replace("{i}", str(i)) for name in entry.ours)
                    yield replace(entry, theirs=theirs, ours=ours)
