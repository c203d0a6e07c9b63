"""Jobs that say what each process holds of a whole model's parameters, and clip its gradients."""

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from megalite.distributed.launch import Launch
from megalite.distributed.mesh import Mesh, ParallelConfig, build_mesh
from megalite.engine.build import build_model
from megalite.engine.gradients import clip_grad_norm
from megalite.engine.model import Model
from megalite.layers.shards import local_box, local_part
from megalite.models.config import ModelConfig
from megalite.seeds import hash64
from tests.dist.exact import numbers

_ODD = {
    "vocab_size": 53,
    "hidden_size": 22,
    "num_heads": 5,
    "head_size": 6,
    "ffn_size": 31,
    "num_layers": 4,
    "max_positions": 16,
}
_BIASED = {
    "norm": "layer_norm",
    "gated": False,
    "qkv_bias": True,
    "attention_bias": True,
    "ffn_bias": True,
}
MODELS = {
    "biases": {"position": "learned", "tie_embeddings": False, "head_bias": True, **_BIASED},
    "one key head": {"num_kv_heads": 1, **_BIASED},
    "two stacks": {"position": "relative", "num_encoder_layers": 2, "num_layers": 2},
}


def model_of(launch: Launch, name: str, layout: dict[str, Any]) -> Model:
    """A model in a layout; a process alone needs no mesh."""
    parallel = ParallelConfig(**layout)
    mesh = build_mesh(launch, parallel, "cpu") if layout else Mesh.single()
    return build_model(ModelConfig(**(_ODD | MODELS[name])), mesh, parallel, seed=5)


def held(launch: Launch, layout: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """Of each model's parameters: all of it, what is here, and shape and offset of that."""
    found = {}
    for name in MODELS:
        for key, parameter in model_of(launch, name, layout).named_parameters():
            data = parameter.detach()
            shape, offset = local_box(parameter)
            found[name, key] = {
                "whole": data.full_tensor() if isinstance(data, DTensor) else data,
                "part": local_part(data),
                "shape": shape,
                "offset": offset,
            }
    return found


def gradient(name: str, parameter: Tensor) -> Tensor:
    """All of the gradient of a parameter."""
    return numbers(hash64(name) % 2**31, *parameter.shape, dtype=torch.float32)


def box(whole: Tensor, shape: tuple[int, ...], offset: tuple[int, ...]) -> Tensor:
    """A part of a whole tensor."""
    return whole[tuple(slice(at, at + size) for at, size in zip(offset, shape, strict=True))]


def _give_gradients(model: Model, frozen: str) -> None:
    """Every copy of every parameter gets its part of the whole gradient."""
    for part in model.parts:
        for name, parameter in part.named_parameters():
            if frozen and frozen in name:
                continue
            parameter.grad = torch.zeros_like(parameter)
            here = box(gradient(name, parameter), *local_box(parameter))
            local_part(parameter.grad).copy_(here)


def clipped(launch: Launch, layout: dict[str, Any], cases: list[tuple]) -> list[dict[str, Any]]:
    """For each (model, frozen, largest norm, loss scale): norm, bad processes, what is left."""
    models = {name: model_of(launch, name, layout) for name in MODELS}
    found = []
    for name, frozen, max_norm, scale in cases:
        _give_gradients(models[name], frozen)
        norm, bad, _ = clip_grad_norm(models[name], max_norm, scale)
        left = [
            (key, local_part(parameter.grad).clone(), *local_box(parameter))
            for part in models[name].parts
            for key, parameter in part.named_parameters()
            if parameter.grad is not None
        ]
        for part in models[name].parts:
            part.zero_grad(set_to_none=True)
        found.append({"norm": norm, "bad": bad, "left": left})
    return found


def spoilt(
    launch: Launch, layout: dict[str, Any], cases: list[tuple[int, str, float]]
) -> list[tuple[Tensor, Tensor, bool]]:
    """For each (rank, parameter, value): norm, bad processes, and whether this is one.

    That rank has the value in its part of the gradient of that parameter.
    """
    model, found = model_of(launch, "two stacks", layout), []
    for rank, key, value in cases:
        _give_gradients(model, frozen="")
        is_hit = False
        for part in model.parts:
            parameter = dict(part.named_parameters()).get(key)
            if launch.rank == rank and parameter is not None:
                local = local_part(parameter.grad)
                local.view(-1)[-1:].fill_(value)
                is_hit = is_hit or local.numel() > 0
        norm, bad, _ = clip_grad_norm(model, 1.0)
        found.append((norm, bad, is_hit))
    return found
