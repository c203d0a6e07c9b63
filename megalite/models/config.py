"""The one config of every model; a family is values of it."""

import difflib
import math
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from megalite.config.section import Section
from megalite.errors import ConfigError
from megalite.models.deviation import LETTERS, InitialConfig, PositiveDeviation, evaluate
from megalite.models.presets import PRESETS


class ModelConfig(Section):
    """A Transformer's shape. Defaults are a small LLaMA-like causal decoder."""

    preset: str = Field(
        "",
        description="published size (`megalite models` lists them); other keys override its values",
    )
    vocab_size: int = Field(32000, ge=2, description="tokens in the vocabulary, V")
    hidden_size: int = Field(512, ge=1, description="width of the residual stream, D")
    num_layers: int = Field(6, ge=1, description="decoder blocks, L")
    num_encoder_layers: int = Field(0, ge=0, description="encoder blocks; 0: decoder only")
    num_heads: int = Field(8, ge=1, description="query heads, N")
    num_kv_heads: int = Field(0, ge=0, description="key and value heads, G; 0: num_heads")
    head_size: int = Field(0, ge=0, description="width of a head, H; 0: hidden_size / num_heads")
    ffn_size: int = Field(1376, ge=1, description="inner width of the feed-forward layer, F")
    embedding_size: int = Field(
        0, ge=0, description="width of the embedding, projected to D; 0: hidden_size"
    )
    separate_embeddings: bool = Field(
        False, description="the encoder has an embedding of its own (T5Gemma)"
    )

    norm: Literal["rms_norm", "layer_norm"] = Field(
        "rms_norm", description="kind of norm: rms_norm or layer_norm"
    )
    norm_eps: float = Field(1e-5, gt=0, description="constant added to the variance or mean square")
    norm_bias: bool = Field(True, description="bias of layer_norm")
    norm_plus_one: bool = Field(False, description="scale of rms_norm is 1 + weight (Gemma)")
    norm_position: Literal["pre", "post", "both"] = Field(
        "pre",
        description="place of the norms: pre (before a sub-layer), post (after the sum) or both "
        "(before and after a sub-layer)",
    )
    residual_scale: float = Field(
        1.0, gt=0, description="factor of the residual (DeepNorm's alpha)"
    )
    embedding_norm: bool = Field(False, description="norm after the embedding")
    final_norm: bool = Field(True, description="norm after the last block")
    parallel_block: Literal["no", "one_norm", "two_norms"] = Field(
        "no",
        description="attention and feed-forward side by side: no, one_norm (shared), or two_norms",
    )

    activation: Literal["relu", "gelu", "gelu_tanh", "silu"] = Field(
        "silu",
        description="activation of the feed-forward layer: relu, gelu, gelu_tanh (its tanh form) "
        "or silu",
    )
    gated: bool = Field(True, description="gated feed-forward layer, activation(gate) * up")
    qkv_bias: bool = Field(False, description="biases of query, key and value")
    attention_bias: bool = Field(False, description="bias of the attention output")
    ffn_bias: bool = Field(False, description="biases of the feed-forward layer")
    attention_scale: float = Field(
        0.0, ge=0, description="factor of attention scores; 0: 1 / sqrt(head_size)"
    )
    score_cap: float = Field(
        0.0,
        ge=0,
        description="cap of attention scores, cap tanh(scores / cap), on a CPU alone; 0: none",
    )
    query_key_norm: bool = Field(False, description="norm of each head's queries and keys")
    windows: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (),
        description="keys up to its own that a row of each layer may see, the pattern repeated "
        "over the layers; 0: all",
    )

    position: Literal["rope", "learned", "sinusoid", "alibi", "relative", "none"] = Field(
        "rope",
        description="positions: rope, learned (a table), sinusoid (a fixed table), alibi, relative "
        "(T5's buckets) or none",
    )
    max_positions: int = Field(
        2048, ge=1, description="longest sequence; entries of a table of positions"
    )
    position_offset: int = Field(
        0, ge=0, description="unused entries at the start of a learned table (OPT, BART: 2)"
    )
    rope_base: float = Field(10000.0, gt=0, description="base of RoPE's angles")
    rope_window_base: float = Field(
        0.0,
        ge=0,
        description="base of RoPE's angles, unstretched, in layers with a window; 0: as elsewhere",
    )
    rope_scaling: Literal["linear", "dynamic", "llama3", "yarn"] = Field(
        "linear",
        description="stretching of RoPE by rope_scale: linear divides positions; dynamic "
        "(NTK), llama3 and yarn change frequencies",
    )
    rope_scale: float = Field(1.0, gt=0, description="factor of rope_scaling; 1 with linear: none")
    rope_original_positions: int = Field(
        0, ge=0, description="longest sequence before stretching (llama3, yarn); 0: max_positions"
    )
    rope_low_factor: float = Field(
        1.0, gt=0, description="waves longer than the original length / it are stretched (llama3)"
    )
    rope_high_factor: float = Field(
        4.0, gt=0, description="waves shorter than the original length / it stay (llama3)"
    )
    rope_beta_fast: float = Field(
        32.0, gt=0, description="turns over the original length from which angles stay (yarn)"
    )
    rope_beta_slow: float = Field(
        1.0, gt=0, description="turns over the original length below which they stretch (yarn)"
    )
    rope_truncate: bool = Field(
        True, description="whole dimensions as bounds of the stretching (yarn)"
    )
    rope_attention_factor: float = Field(
        0.0, ge=0, description="factor of queries and keys (yarn); 0: 0.1 ln(rope_scale) + 1"
    )
    rotary_size: int = Field(0, ge=0, description="dimensions of a head that are rotated; 0: all")
    rope_interleaved: bool = Field(
        False, description="rotated pairs (2i, 2i+1) instead of (i, i + R/2)"
    )
    rope_axes: Literal[1, 2] = Field(1, description="position axes of RoPE: 1, or 2 (ChatGLM-6B)")
    alibi_scale: float = Field(1.0, gt=0, description="factor of ALiBi's slopes")
    relative_buckets: int = Field(32, ge=2, description="buckets of T5's relative bias")
    relative_max_distance: int = Field(128, ge=2, description="distance of T5's last bucket")

    head: Literal["lm", "value"] = Field(
        "lm", description="kind of head: lm (next-token logits) or value (a scalar per row)"
    )
    tie_embeddings: bool = Field(True, description="head and embedding share a matrix")
    head_bias: bool = Field(False, description="bias of the head")
    normalised_head: bool = Field(False, description="rows of the head's matrix scaled to length 1")
    logit_scale: float = Field(1.0, gt=0, description="factor of the logits")
    logit_cap: float = Field(
        0.0, ge=0, description="cap of the logits, cap tanh(logits / cap); 0: none"
    )
    embedding_scale: float = Field(1.0, gt=0, description="factor of the embeddings")

    dropout: float = Field(0.0, ge=0, lt=1, description="dropout of sub-layers and embeddings")
    dropout_by_layer: Literal["equal", "rising"] = Field(
        "equal",
        description="dropout of the sub-layers of each block; rising: from 0 in the first block "
        "to dropout in the last, in equal parts (LIMA)",
    )
    embedding_dropout: float | None = Field(
        None, ge=0, lt=1, description="dropout of embeddings; none: dropout"
    )
    attention_dropout: float = Field(
        0.0, ge=0, lt=1, description="dropout of attention probabilities"
    )
    init_std: PositiveDeviation = Field(
        0.02,
        description="standard deviation of initial weights: a number, or a formula such as "
        "'sqrt(2/5D)' or 'sqrt(1/3D)'",
    )
    scaled_init: bool = Field(
        True, description="smaller initial weights of what adds to the residual, by sqrt(2 L)"
    )

    initial: InitialConfig = InitialConfig()

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Any) -> Any:
        """Start from the preset's values."""
        name = values.get("preset") if isinstance(values, dict) else None
        if not name or not isinstance(name, str):
            return values
        if name not in PRESETS:
            close = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.0)[0]
            raise ConfigError(
                f"--model.preset {name}: no such preset; did you mean {close}? "
                "`megalite models` lists all"
            )
        return {**PRESETS[name].values, **values}

    @field_validator("windows", mode="before")
    @classmethod
    def _tuple(cls, values: Any) -> Any:
        """A list, as a checkpoint's manifest has it, is as good."""
        return tuple(values) if isinstance(values, list) else values

    @model_validator(mode="after")
    def _check(self) -> "ModelConfig":
        if not self.head_size and self.hidden_size % self.num_heads:
            raise ConfigError(
                f"--model.num_heads {self.num_heads}: must divide hidden_size {self.hidden_size}, "
                "or set head_size"
            )
        if self.num_heads % self.kv_heads:
            raise ConfigError(
                f"--model.num_kv_heads {self.num_kv_heads}: must divide num_heads {self.num_heads}"
            )
        if self.norm_position == "both" and self.parallel_block != "no":
            raise ConfigError(
                f"--model.norm_position both: needs parallel_block no, came {self.parallel_block}"
            )
        if self.score_cap and self.position in ("alibi", "relative"):
            raise ConfigError(
                f"--model.score_cap {self.score_cap:g}: needs positions without a bias, came "
                f"{self.position}"
            )
        if self.norm_plus_one and self.norm != "rms_norm":
            raise ConfigError(f"--model.norm_plus_one true: needs norm rms_norm, came {self.norm}")
        if self.separate_embeddings and not self.num_encoder_layers:
            raise ConfigError("--model.separate_embeddings true: needs num_encoder_layers, came 0")
        return self

    @model_validator(mode="after")
    def _check_rope(self) -> "ModelConfig":
        if self.rope_window_base and not any(self.windows):
            raise ConfigError(
                f"--model.rope_window_base {self.rope_window_base:g}: needs windows, came none"
            )
        if self.rope_scaling == "dynamic" and self.rope_axes == 2:
            raise ConfigError("--model.rope_scaling dynamic: needs rope_axes 1, came 2")
        if self.rope_scaling == "llama3" and self.rope_low_factor >= self.rope_high_factor:
            raise ConfigError(
                f"--model.rope_low_factor {self.rope_low_factor:g}: must be below rope_high_factor "
                f"{self.rope_high_factor:g}"
            )
        if self.position == "rope" and self.rotary % (2 * self.rope_axes):
            raise ConfigError(
                f"--model.rotary_size {self.rotary}: must be a multiple of {2 * self.rope_axes}"
            )
        return self

    @property
    def kv_heads(self) -> int:
        """Key and value heads, G."""
        return self.num_kv_heads or self.num_heads

    @property
    def head_dim(self) -> int:
        """Width of a head, H."""
        return self.head_size or self.hidden_size // self.num_heads

    @property
    def rotary(self) -> int:
        """Dimensions of a head that turn, R."""
        return self.rotary_size or self.head_dim

    @property
    def rope_trained_positions(self) -> int:
        """Longest sequence that the angles were trained on before they were stretched."""
        return self.rope_original_positions or self.max_positions

    @property
    def has_position_table(self) -> bool:
        """Whether positions are rows of a table, which has ``max_positions``."""
        return self.position in ("learned", "sinusoid")

    @property
    def embedding_width(self) -> int:
        """Width of the embedding, E."""
        return self.embedding_size or self.hidden_size

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether there is an encoder."""
        return self.num_encoder_layers > 0

    def window_of(self, layer: int) -> int:
        """Keys up to its own that a row of a layer, counted from 0, may see; 0 is all."""
        return self.windows[layer % len(self.windows)] if self.windows else 0

    def deviation(
        self, role: str, fan_in: int = 0, fan_out: int = 0, adds_to_residual: bool = False
    ) -> float:
        """Standard deviation of a matrix's initial weights.

        Args:
            role: a key of :class:`InitialConfig`; another has none of its own.
            fan_in: columns; 0: D.
            fan_out: rows; 0: D.
            adds_to_residual: whether ``scaled_init`` is about it.
        """
        fan_in, fan_out = fan_in or self.hidden_size, fan_out or self.hidden_size
        letters = (
            *(self.hidden_size, self.ffn_size, self.vocab_size, self.num_heads, self.kv_heads),
            *(self.head_dim, self.num_layers, self.num_encoder_layers),
        )
        sizes = dict(zip(LETTERS, map(float, letters), strict=True))
        sizes |= {"fan_in": fan_in, "fan_out": fan_out, "xavier": math.sqrt(2 / (fan_in + fan_out))}
        if own := getattr(self.initial, role, 0.0):
            return evaluate(own, sizes)
        std = evaluate(self.init_std, sizes)
        if not (adds_to_residual and self.scaled_init):
            return std
        return std / math.sqrt(2 * max(self.num_layers, self.num_encoder_layers))

    @property
    def drops(self) -> bool:
        """Whether anything is dropped while the model learns."""
        return any((self.dropout, self.attention_dropout, self.embedding_dropout))

    def without_dropout(self) -> "ModelConfig":
        """The same model, of which nothing is dropped."""
        rates = ("dropout", "attention_dropout", "embedding_dropout")
        return self.model_copy(update=dict.fromkeys(rates, 0.0))

    def dropout_of(self, layer: int, layers: int) -> float:
        """Dropout of the sub-layers of a block, counted from 0, of a stack of ``layers``."""
        if self.dropout_by_layer == "equal":
            return self.dropout
        return self.dropout * layer / max(layers - 1, 1)

    @property
    def standard_deviation(self) -> float:
        """``init_std`` as a number, that of a D x D matrix."""
        return self.deviation("")

    @property
    def scale(self) -> float:
        """What attention scores are multiplied by."""
        return self.attention_scale or self.head_dim**-0.5
