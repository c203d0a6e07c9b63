"""What the references of published modelling code share: a plain PyTorch model, and its folder.

They are written from the original repositories for these tests alone, with the original parameter
names, a dense mask and an explicit softmax, and share no code with megalite.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


class Reference(nn.Module):
    """A language model of ``settings``, its published config."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.settings = settings

    def logits(self, tokens: Tensor, positions: Tensor, allowed: Tensor) -> Tensor:
        """Give [B, S, V] for tokens [B, S], positions [B, S(, 2)] and a mask [B, S, S]."""
        raise AssertionError("each reference has its own")

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor | None = None,
        allowed: Tensor | None = None,
        **_: Any,
    ) -> SimpleNamespace:
        rows, length = input_ids.shape
        if positions is None:
            positions = torch.arange(length).expand(rows, length)
        if allowed is None:
            allowed = torch.ones(length, length).tril().bool().expand(rows, length, length)
        return SimpleNamespace(logits=self.logits(input_ids, positions, allowed))

    def save_pretrained(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        (path / "config.json").write_text(json.dumps(self.settings))
        save_file({n: t.detach().clone() for n, t in self.named_parameters()}, path / NAME)

    @classmethod
    def from_pretrained(cls, path: Path) -> "Reference":
        model = cls(**json.loads((path / "config.json").read_text()))
        tensors: dict[str, Tensor] = {}
        for file in path.glob("*.safetensors"):
            tensors |= load_file(file)
        own = dict(model.named_parameters())
        assert tensors.keys() == own.keys()
        with torch.no_grad():
            for name, tensor in tensors.items():
                own[name].copy_(tensor)
        return model


NAME = "model.safetensors"


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, bias: Any = 0.0) -> Tensor:
    """Attend: q, k, v [B, S, N, H], allowed [B, S, S], bias [N, S, S]; gives [B, S, N H]."""
    scores = torch.einsum("bqnh,bknh->bnqk", q, k) / q.shape[-1] ** 0.5 + bias
    scores = scores.masked_fill(~allowed[:, None], -torch.inf)
    weights = scores.softmax(-1).nan_to_num(0.0)
    return torch.einsum("bnqk,bknh->bqnh", weights, v).flatten(2)


def angles(positions: Tensor, width: int) -> Tensor:
    """RoPE's angle of each position [B, S] and pair: [B, S, 1, width / 2]."""
    frequencies = 1.0 / 10000 ** (torch.arange(0, width, 2).float() / width)
    return positions[..., None, None].float() * frequencies


def turn_halves(x: Tensor, positions: Tensor) -> Tensor:
    """Turn pairs (i, i + width / 2) of x [B, S, N, width]."""
    angle = angles(positions, x.shape[-1])
    cos, sin = (torch.cat((f(angle), f(angle)), -1) for f in (torch.cos, torch.sin))
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


def turn_neighbours(x: Tensor, positions: Tensor) -> Tensor:
    """Turn pairs (2i, 2i + 1) of x [B, S, N, width] as complex numbers."""
    angle = angles(positions, x.shape[-1])
    whole = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(whole * torch.polar(torch.ones_like(angle), angle)).flatten(-2)


class RootMeanSquare(nn.Module):
    """RMSNorm."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))
