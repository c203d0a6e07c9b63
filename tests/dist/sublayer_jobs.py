"""Jobs that run attention and feed-forward layers alone, each by itself or from shared products."""

from typing import Any

import torch
from torch import Tensor, nn

from megalite.distributed.launch import Launch
from megalite.distributed.mesh import Mesh
from megalite.layers.products import column_products
from megalite.layers.region import enter
from megalite.models.attention import Attention, CrossAttention
from megalite.models.config import ModelConfig
from megalite.models.context import Context
from megalite.models.feed_forward import FeedForward
from megalite.models.rope import rotation
from megalite.ops import Dropout
from megalite.ops import mask as masks
from tests.dist.exact import numbers, shards
from tests.dist.placing import double, gradients, mesh_of, place, split_dim, stream

BATCH, S, S_ENCODER, WIDTH = 2, 5, 7, 6
_BIASES = {"qkv_bias": True, "attention_bias": True, "ffn_bias": True}
CONFIGS = {
    "4 heads": {"num_heads": 4, "rope_interleaved": True},
    "4 heads of 2": {"num_heads": 4, "num_kv_heads": 2, "activation": "gelu", "gated": False},
    "6 heads of 3": {  # a border inside a group
        "num_heads": 6,
        "num_kv_heads": 3,
        "query_key_norm": True,
        "windows": (2,),
        **_BIASES,
    },
    "5 heads of 1": {
        "num_heads": 5,
        "num_kv_heads": 1,
        "attention_dropout": 0.3,
        "query_key_norm": True,
        **_BIASES,
    },
    "5 heads, bias": {"num_heads": 5, "position": "relative", "attention_dropout": 0.3, **_BIASES},
    "5 heads of 1, bias": {"num_heads": 5, "num_kv_heads": 1, "position": "alibi"},
}
KINDS = ("attention", "cross", "feed-forward", "shared")
KEYS = [(kind, name) for kind in KINDS for name in CONFIGS]


def config(name: str) -> ModelConfig:
    """A tiny model of odd sizes."""
    sizes = {"hidden_size": WIDTH, "head_size": 4, "ffn_size": 7}
    return ModelConfig(**sizes, **CONFIGS[name])


def _modules(kind: str, name: str, mesh: Mesh) -> nn.ModuleDict:
    made = nn.ModuleDict()
    if kind in ("attention", "shared"):
        made["attention"] = Attention(config(name), mesh, "decoder.layers.1.attention")
    if kind == "cross":
        made["cross"] = CrossAttention(config(name), mesh, "decoder.layers.1.cross")
    if kind in ("feed-forward", "shared"):
        made["ffn"] = FeedForward(config(name), mesh)
    values = {
        key: numbers(10 + number, *parameter.shape) / 16
        for number, (key, parameter) in enumerate(made.named_parameters())
    }
    place(made, values, mesh.tp)
    return made


def _context(name: str, bias: Tensor | None) -> Context:
    positions = torch.arange(S, dtype=torch.int32).expand(BATCH, S)
    return Context(
        S,
        masks.packed([[2, 3], [4]], S),  # a row of padding at the end of the second
        masks.cross(torch.tensor([5, 7]), S, S_ENCODER),
        rotation(config(name), positions),
        bias,
        Dropout(7, torch.tensor([3, 8])),
    )


def _bias(name: str, mesh: Mesh) -> Tensor | None:
    """This process's heads of a bias, which needs a gradient too."""
    if config(name).position == "rope":
        return None
    whole = numbers(4, config(name).num_heads, 2 * S - 1) / 8
    return shards(whole, 0, mesh.tp.size)[mesh.tp.rank].clone().requires_grad_()


def _from_shared_products(made: Any, x: Tensor, context: Context, mesh: Mesh) -> Tensor:
    """The sum of both layers, which a process alone makes of each by itself."""
    attention, ffn = made["attention"], made["ffn"]
    if mesh.tp.size == 1:
        return attention(x, context) + ffn(x, context)
    products = column_products(x, attention.matrices() + ffn.matrices(), mesh, S)
    partial = attention(x, context, shared=products[:3]) + ffn(x, context, shared=products[3:])
    y = attention.output.finish(partial)
    return y + ffn.output.local("bias", mesh.sequence_parallel) if ffn.output.has_bias else y


def _run(kind: str, name: str, mesh: Mesh) -> dict[str, Any]:
    """Results and gradients, and the dimension of each parameter that is split."""
    made, bias = _modules(kind, name, mesh), _bias(name, mesh)
    context = _context(name, bias)
    x = stream(numbers(1, BATCH, S, WIDTH) / 4, mesh, fill=7.0).clone().requires_grad_()
    memory = stream(numbers(2, BATCH, S_ENCODER, WIDTH) / 4, mesh, fill=7.0)
    memory = memory.clone().requires_grad_()
    if kind == "attention":
        y = made["attention"](x, context)
    elif kind == "cross":
        y = made["cross"](x, context, enter(memory, mesh, S_ENCODER))
    elif kind == "feed-forward":
        y = made["ffn"](x, context)
    else:
        y = _from_shared_products(made, x, context, mesh)
    y.backward(stream(numbers(3, BATCH, S, WIDTH), mesh, fill=0.0))
    return {
        "y": y.detach(),
        "x": x.grad,
        "memory": memory.grad,
        "bias": None if bias is None else bias.grad,
        "gradients": gradients(made),
        "dims": {key: split_dim(parameter) for key, parameter in made.named_parameters()},
    }


def sublayers(launch: Launch, layout: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """What each layer of each config gives, by kind and config."""
    mesh = mesh_of(launch, layout)
    with double():
        return {(kind, name): _run(kind, name, mesh) for kind, name in KEYS}
