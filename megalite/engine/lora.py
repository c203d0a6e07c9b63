"""Learning by low-rank adapters: which linear layers have one, and that nothing else learns.

A model is adapted after it is made and before it is sharded, so no block knows of it: its chosen
linear layers get an adapter, and all other weights are frozen and held in the number format of
compute, or the matrices of linear layers in 8 or 4 bits. A scalar head, which no language model
has, learns as a whole.

Source: Hu et al. 2021, arXiv:2106.09685; `rslora`: Kalajdzievski 2023, arXiv:2312.03732;
`dora`: Liu et al. 2024, arXiv:2402.09353.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from megalite.config.section import Section
from megalite.distributed.collectives import shard_bounds
from megalite.distributed.mesh import Axis, ParallelConfig
from megalite.errors import ConfigError
from megalite.layers.adapter import Adapter, AdapterOptions, row_factor, row_sizes
from megalite.layers.linear import AdaptableLinear
from megalite.layers.quantised import QuantisedWeight
from megalite.layers.shards import Share, local_box, local_part
from megalite.models.config import ModelConfig
from megalite.models.transformer import Transformer
from megalite.ops.quantised import BLOCK, Format, dequantised, quantised

ADAPTER = ".adapter."  # in the names of its factors
HEAD = "head.value."  # begins those of a scalar head
GUEST = re.compile(r"(?:(.+)\.)?guests\.(\w+)\.(.+)")  # what a guest has in a layer, or as head

LayerName = Literal[
    "all",
    "attention",
    "attention.query",
    "attention.key",
    "attention.value",
    "attention.output",
    "cross",
    "cross.query",
    "cross.key",
    "cross.value",
    "cross.output",
    "feed_forward",
    "feed_forward.up",
    "feed_forward.gate",
    "feed_forward.output",
]


class LoRAConfig(Section):
    """Low-rank adapters, which alone learn."""

    rank: int = Field(
        0, ge=0, description="rank of the adapters of linear layers; 0: none, all weights learn"
    )
    alpha: float = Field(
        0.0,
        ge=0,
        description="an adapter's product is multiplied by alpha / rank; 0: alpha is the rank",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout of an adapter's input")
    layers: tuple[LayerName, ...] = Field(
        ("all",),
        description="linear layers that have one: all, attention (to itself), cross (attention to "
        "an encoder), feed_forward, or single ones of them, such as attention.query, "
        "cross.value, feed_forward.up",
    )
    rslora: bool = Field(
        False, description="whether the factor is alpha / sqrt(rank) instead (rsLoRA)"
    )

    dora: bool = Field(
        False, description="whether the sizes of a matrix's rows learn apart from it (DoRA)"
    )
    base_format: Literal["compute", "int8", "nf4"] = Field(
        "compute",
        description="how the frozen matrices of linear layers are held: compute: in the number "
        "format of compute; int8, nf4 (QLoRA): in 8 or 4 bits an element and a scale for each 64",
    )

    @model_validator(mode="after")
    def _check(self) -> "LoRAConfig":
        for key in sorted(self.model_fields_set - {"rank"}):
            value = getattr(self, key)
            if not self.rank and value != type(self).model_fields[key].default:
                said = " ".join(value) if isinstance(value, tuple) else str(value).lower()
                raise ConfigError(
                    f"--lora.{key} {said}: needs lora.rank, which is 0: give it, such as 16, or "
                    f"leave lora.{key} out"
                )
        if not self.layers:
            raise ConfigError("--lora.layers []: must name a linear layer: leave it out for all")
        return self

    @property
    def scale(self) -> float:
        """What an adapter's product is multiplied by."""
        return (self.alpha or self.rank) / (self.rank**0.5 if self.rslora else self.rank)

    @property
    def form(self) -> Format | None:
        """In which bits the base's matrices are held; None: in the number format of compute."""
        return None if self.base_format == "compute" else self.base_format

    def base_alone(self) -> "LoRAConfig":
        """The base as it is held, without adapters."""
        return NO_LORA.model_copy(update={"base_format": self.base_format})

    def chooses(self, name: str) -> bool:
        """Whether a module of a model is a linear layer that has an adapter."""
        own = adaptable(name)
        return (
            self.rank > 0 and own is not None and any(is_in(own, chosen) for chosen in self.layers)
        )


NO_LORA = LoRAConfig()


def adaptable(name: str) -> str | None:
    """The name in ``lora.layers`` of a linear layer of a model; None of other modules."""
    kind = ".".join(name.split(".")[-2:]).replace("ffn.", "feed_forward.")
    known = kind in get_args(LayerName) and "." in kind
    return kind if known else None


def is_linear(name: str) -> bool:
    """Whether a parameter of a model is the matrix of such a layer."""
    return name.endswith(".weight") and adaptable(name.removesuffix(".weight")) is not None


def is_in(own: str, chosen: str) -> bool:
    """Whether a single layer is one of those that a name chooses."""
    return chosen in ("all", own, own.partition(".")[0])


def check_lora(lora: LoRAConfig, model: ModelConfig, parallel: ParallelConfig) -> None:
    """Refuse layers that a model doesn't have, or that leave pipeline stages nothing to learn.

    Raises:
        ConfigError: it names them.
    """
    if not lora.rank:
        return
    own = ["attention.query", "attention.key", "attention.value", "attention.output"]
    if model.is_encoder_decoder:
        own += [name.replace("attention", "cross") for name in own]
    own += ["feed_forward.up", "feed_forward.output"]
    own += ["feed_forward.gate"] if model.gated else []
    for chosen in lora.layers:
        if not any(is_in(name, chosen) for name in own):
            raise ConfigError(
                f"--lora.layers {chosen}: this model has no such layer: use all, or "
                f"{', '.join(own)}"
            )
    check_blocks(lora, model, parallel)
    if parallel.pp > 1 and all(chosen.startswith("cross") for chosen in lora.layers):
        raise ConfigError(
            f"--lora.layers {' '.join(lora.layers)}: no layer of the encoder is among them, and "
            f"parallel.pp {parallel.pp} needs some in every stage: add attention, or use pp 1"
        )


def check_blocks(
    lora: LoRAConfig, model: ModelConfig, parallel: ParallelConfig, section: str = "parallel"
) -> None:
    """Refuse a layout whose tp would cut a block of a quantised matrix's row.

    Args:
        lora: how the base is held.
        model: whose base.
        parallel: the layout.
        section: of the config that says the layout.

    Raises:
        ConfigError: it names the layer and the sizes.
    """
    if lora.form is None:
        return
    heads = ("attention.output", model.num_heads, model.head_dim)
    for name, count, each in (heads, ("feed_forward.output", model.ffn_size, 1)):
        for rank in range(parallel.tp - 1):
            end = shard_bounds(count, Axis("tp", parallel.tp, rank))[1] * each
            if end % BLOCK:
                raise ConfigError(
                    f"--lora.base_format {lora.base_format}: {BLOCK} inputs of a matrix share a "
                    f"scale, and {section}.tp {parallel.tp} cuts {name} after {end} of its "
                    f"{count * each} inputs: each cut must be at a multiple of {BLOCK}: use "
                    f"another {section}.tp"
                )


def adapt(part: Transformer, lora: LoRAConfig, held: torch.dtype) -> None:
    """Give a part of a model its adapters and freeze all else, before it is sharded.

    Args:
        part: of a model, without storage.
        lora: which adapters, and how the base is held.
        held: dtype of the frozen weights that are not quantised, that of compute.
    """
    scale = lora.scale if lora.rank else 0.0
    options = AdapterOptions(lora.rank, scale, lora.dropout, lora.dora)
    for name, module in list(part.named_modules()):
        if isinstance(module, AdaptableLinear) and lora.chooses(name):
            with torch.device("meta"):
                module.adapt(name, options)
        if lora.form is not None and isinstance(module, AdaptableLinear) and adaptable(name):
            module.quantise(lora.form)
    for prefix, module in part.named_modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if not learns(f"{prefix}.{name}"):
                frozen = nn.Parameter(parameter.detach().to(held), requires_grad=False)
                module.register_parameter(name, frozen)


def learns(name: str) -> bool:
    """Whether a parameter of an adapted model learns."""
    return ADAPTER in name or name.startswith(HEAD)


def quantised_of(parts: Sequence[Transformer]) -> dict[str, QuantisedWeight]:
    """The quantised matrices of parts of a model, by the names of the weights that they are."""
    return {
        f"{name}.weight": module.quantised
        for part in parts
        for name, module in part.named_modules()
        if isinstance(module, AdaptableLinear) and module.quantised is not None
    }


def num_outs(name: str, dims: int) -> int:
    """How many of a linear layer's ``dims`` dimensions are outputs, by the weight's name."""
    return 1 if name.endswith(".output.weight") else dims - 1


def as_matrix(name: str, weight: Tensor) -> Tensor:
    """A linear layer's whole weight [*out, *inputs] as a matrix [O, D]."""
    outs = num_outs(name, weight.dim())
    return weight.flatten(outs).flatten(0, outs - 1)


@torch.no_grad()
def round_base(weights: Mapping[str, Tensor | Share], form: Format) -> None:
    """Give whole matrices of a base the values that they have where it is quantised, in place.

    Args:
        weights: fp32, by the whole model's names; those that aren't quantised stay.
        form: in which bits.
    """
    for name, weight in weights.items():
        if not is_linear(name):
            continue
        whole = local_part(weight)
        matrix = quantised(as_matrix(name, whole), form)
        whole.copy_(dequantised(matrix, torch.float32).view(whole.shape))


@contextmanager
def with_adapters(parts: Sequence[Transformer], chosen: Collection[str]) -> Iterator[None]:
    """Let parts of a model compute as their frozen weights do with some adapters.

    Args:
        parts: of the model.
        chosen: names of guests; the empty one is of the model's own adapters.
    """
    adapters = [m for part in parts for m in part.modules() if isinstance(m, Adapter)]
    before = [adapter.is_on for adapter in adapters]
    for adapter in adapters:
        adapter.is_on = adapter.guest in chosen
    try:
        yield
    finally:
        for adapter, was_on in zip(adapters, before, strict=True):
            adapter.is_on = was_on


def owner_and_name(name: str) -> tuple[str, str]:
    """Whose a parameter of a model is, and its name in the owner.

    Args:
        name: in the model's modules.

    Returns:
        The guest, empty for the model itself; and the name, which in a model with weights of its
        own would be the same.
    """
    found = GUEST.fullmatch(name) if "guests." in name else None
    if found is None:
        return "", name
    layer, guest, own = found.groups()
    return guest, f"{layer}{ADAPTER}{own}" if layer else f"head.{own}"


@torch.no_grad()
def add_product(parameter: Tensor | Share, factors: Mapping[str, Tensor], scale: float) -> None:
    """Add an adapter's product to its layer's matrix, in place; each process to what it holds.

    Args:
        parameter: [*out, *inputs], perhaps spread over processes; beside DoRA's whole in each.
        factors: ``down`` [r, *inputs] and ``up`` [*out, r], fp32, whole; DoRA's ``change`` [*out].
        scale: factor of the product.
    """
    if "change" in factors:
        _add_direction(parameter, factors, scale)
        return
    shape, offset = local_box(parameter)
    box = [slice(at, at + n) for at, n in zip(offset, shape, strict=True)]
    outs = factors["up"].dim() - 1
    up, down = factors["up"][tuple(box[:outs])], factors["down"][(slice(None), *box[outs:])]
    local = local_part(parameter)
    product = torch.tensordot(up.to(local.device), down.to(local.device), dims=1)
    local.copy_(local.float() + scale * product)


def _add_direction(parameter: Tensor | Share, factors: Mapping[str, Tensor], scale: float) -> None:
    """Make a whole matrix that of a DoRA adapter, in place."""
    local = local_part(parameter)
    assert local.shape == parameter.shape
    change = factors["change"].flatten()
    matrix = local.float().view(len(change), -1)
    up, down = scale * factors["up"].flatten(0, -2), factors["down"].flatten(1)
    factor = row_factor(change, *row_sizes(matrix, down, up))
    local.copy_((factor[:, None] * (matrix + up @ down)).view(local.shape))
