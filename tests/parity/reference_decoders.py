"""References of Baichuan, InternLM2, MOSS and PaLM.

Source: modeling_baichuan.py beside the weights of baichuan-inc's models, modeling_internlm2.py
beside those of internlm's, models/modeling_moss.py of OpenMOSS/MOSS, palm_pytorch/palm_pytorch.py
of lucidrains/PaLM-pytorch and arXiv:2204.02311.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.parity.reference import (
    Reference,
    RootMeanSquare,
    softmax_attention,
    turn_halves,
    turn_neighbours,
)


def interleaved_slopes(heads: int) -> list[float]:
    """ALiBi's slopes, by its published recursion."""
    power = math.log2(heads)
    if power.is_integer():
        first = 2 ** (-(2 ** -(power - 3)))
        return [first ** (i + 1) for i in range(heads)]
    below = 2 ** math.floor(power)
    return interleaved_slopes(below) + interleaved_slopes(2 * below)[0::2][: heads - below]


class _BaichuanBlock(nn.Module):
    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        size, inner = settings["hidden_size"], settings["intermediate_size"]
        self.heads = settings["num_attention_heads"]
        self.has_rope = "max_position_embeddings" in settings
        self.input_layernorm = RootMeanSquare(size, settings["rms_norm_eps"])
        self.post_attention_layernorm = RootMeanSquare(size, settings["rms_norm_eps"])
        self.self_attn, self.mlp = nn.Module(), nn.Module()
        self.self_attn.W_pack = nn.Linear(size, 3 * size, bias=False)
        self.self_attn.o_proj = nn.Linear(size, size, bias=False)
        self.mlp.gate_proj = nn.Linear(size, inner, bias=False)
        self.mlp.up_proj = nn.Linear(size, inner, bias=False)
        self.mlp.down_proj = nn.Linear(inner, size, bias=False)

    def forward(self, x: Tensor, positions: Tensor, allowed: Tensor) -> Tensor:
        packed = self.self_attn.W_pack(self.input_layernorm(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = packed.unbind(2)
        bias: Any = 0.0
        if self.has_rope:
            q, k = turn_halves(q, positions), turn_halves(k, positions)
        else:
            place = torch.arange(x.shape[1])
            slopes = torch.tensor(interleaved_slopes(self.heads))
            bias = slopes[:, None, None] * (place[None, :] - place[:, None])
        x = x + self.self_attn.o_proj(softmax_attention(q, k, v, allowed, bias))
        y = self.post_attention_layernorm(x)
        gated = functional.silu(self.mlp.gate_proj(y)) * self.mlp.up_proj(y)
        return x + self.mlp.down_proj(gated)


class Baichuan(Reference):
    """Baichuan 1 and 2."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        size, words = settings["hidden_size"], settings["vocab_size"]
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(words, size)
        self.model.layers = nn.ModuleList(
            _BaichuanBlock(settings) for _ in range(settings["num_hidden_layers"])
        )
        self.model.norm = RootMeanSquare(size, settings["rms_norm_eps"])
        self.lm_head = nn.Linear(size, words, bias=False)

    def logits(self, tokens: Tensor, positions: Tensor, allowed: Tensor) -> Tensor:
        x = self.model.embed_tokens(tokens)
        for layer in self.model.layers:
            x = layer(x, positions, allowed)
        weight = self.lm_head.weight
        if "z_loss_weight" in self.settings:
            weight = weight / weight.norm(dim=-1, keepdim=True)
        return self.model.norm(x) @ weight.T


class _InternLM2Block(nn.Module):
    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        size, inner, eps = (
            settings[k] for k in ("hidden_size", "intermediate_size", "rms_norm_eps")
        )
        self.heads, self.groups = settings["num_attention_heads"], settings["num_key_value_heads"]
        rows, bias = size + 2 * size // self.heads * self.groups, settings["bias"]
        self.attention_norm, self.ffn_norm = RootMeanSquare(size, eps), RootMeanSquare(size, eps)
        self.attention, self.feed_forward = nn.Module(), nn.Module()
        self.attention.wqkv = nn.Linear(size, rows, bias=bias)
        self.attention.wo = nn.Linear(size, size, bias=bias)
        self.feed_forward.w1 = nn.Linear(size, inner, bias=False)
        self.feed_forward.w3 = nn.Linear(size, inner, bias=False)
        self.feed_forward.w2 = nn.Linear(inner, size, bias=False)

    def forward(self, x: Tensor, positions: Tensor, allowed: Tensor) -> Tensor:
        ratio = self.heads // self.groups
        packed = self.attention.wqkv(self.attention_norm(x))
        packed = packed.unflatten(-1, (self.groups, ratio + 2, -1))
        q = packed[..., :ratio, :].flatten(2, 3)
        k, v = (packed[..., i, :].repeat_interleave(ratio, 2) for i in (-2, -1))
        q, k = turn_halves(q, positions), turn_halves(k, positions)
        x = x + self.attention.wo(softmax_attention(q, k, v, allowed))
        y, layers = self.ffn_norm(x), self.feed_forward
        return x + layers.w2(functional.silu(layers.w1(y)) * layers.w3(y))


class InternLM2(Reference):
    """InternLM2."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        size, words = settings["hidden_size"], settings["vocab_size"]
        self.model = nn.Module()
        self.model.tok_embeddings = nn.Embedding(words, size)
        self.model.layers = nn.ModuleList(
            _InternLM2Block(settings) for _ in range(settings["num_hidden_layers"])
        )
        self.model.norm = RootMeanSquare(size, settings["rms_norm_eps"])
        self.output = nn.Linear(size, words, bias=False)

    def logits(self, tokens: Tensor, positions: Tensor, allowed: Tensor) -> Tensor:
        x = self.model.tok_embeddings(tokens)
        for layer in self.model.layers:
            x = layer(x, positions, allowed)
        return self.output(self.model.norm(x))


class _MossBlock(nn.Module):
    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        size, inner = settings["n_embd"], settings["n_inner"]
        self.heads, self.rotary = settings["n_head"], settings["rotary_dim"]
        self.ln_1 = nn.LayerNorm(size, eps=settings["layer_norm_epsilon"])
        self.attn, self.mlp = nn.Module(), nn.Module()
        self.attn.qkv_proj = nn.Linear(size, 3 * size, bias=False)
        self.attn.out_proj = nn.Linear(size, size, bias=False)
        self.mlp.fc_in, self.mlp.fc_out = nn.Linear(size, inner), nn.Linear(inner, size)

    def _turn(self, x: Tensor, positions: Tensor) -> Tensor:
        turned = turn_neighbours(x[..., : self.rotary], positions)
        return torch.cat((turned, x[..., self.rotary :]), -1)

    def forward(self, x: Tensor, positions: Tensor, allowed: Tensor) -> Tensor:
        y = self.ln_1(x)
        parts = self.attn.qkv_proj(y).unflatten(-1, (4, 3, self.heads // 4, -1))
        q, v, k = (parts[..., i, :, :].flatten(2, 3) for i in range(3))
        q, k = self._turn(q, positions), self._turn(k, positions)
        mixed = self.attn.out_proj(softmax_attention(q, k, v, allowed))
        fed = functional.gelu(self.mlp.fc_in(y), approximate="tanh")
        return x + mixed + self.mlp.fc_out(fed)


class Moss(Reference):
    """MOSS."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        size, words = settings["n_embd"], settings["vocab_size"]
        self.transformer = nn.Module()
        self.transformer.wte = nn.Embedding(words, size)
        self.transformer.h = nn.ModuleList(_MossBlock(settings) for _ in range(settings["n_layer"]))
        self.transformer.ln_f = nn.LayerNorm(size, eps=settings["layer_norm_epsilon"])
        self.lm_head = nn.Linear(size, words)

    def logits(self, tokens: Tensor, positions: Tensor, allowed: Tensor) -> Tensor:
        x = self.transformer.wte(tokens)
        for layer in self.transformer.h:
            x = layer(x, positions, allowed)
        return self.lm_head(self.transformer.ln_f(x))


class _ScaledNorm(nn.Module):
    """LayerNorm without bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return self.gamma * centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()


class _PalmAttention(nn.Module):
    def __init__(self, size: int, heads: int, width: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = _ScaledNorm(size)
        self.to_q = nn.Linear(size, heads * width, bias=False)
        self.to_kv = nn.Linear(size, 2 * width, bias=False)
        self.to_out = nn.Linear(heads * width, size, bias=False)

    def forward(self, x: Tensor, positions: Tensor, allowed: Tensor) -> Tensor:
        y = self.norm(x)
        q = turn_halves(self.to_q(y).unflatten(-1, (self.heads, -1)), positions)
        k, v = self.to_kv(y).unsqueeze(2).chunk(2, -1)
        k = turn_halves(k, positions)
        k, v = (t.expand(-1, -1, self.heads, -1) for t in (k, v))
        return self.to_out(softmax_attention(q, k, v, allowed))


class _PalmBlock(nn.Module):
    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        size = settings["dim"]
        inner = round(size * settings["ff_mult"])
        self.shares = settings["parallel_block"] == "one_norm"
        attention = _PalmAttention(size, settings["heads"], settings["dim_head"])
        up, down = nn.Linear(size, 2 * inner, bias=False), nn.Linear(inner, size, bias=False)
        first = nn.Identity() if self.shares else _ScaledNorm(size)
        feed = nn.Sequential(first, up, nn.Identity(), down)
        self.fns = nn.ModuleList([attention, feed])

    def forward(self, x: Tensor, positions: Tensor, allowed: Tensor) -> Tensor:
        attention, feed = self.fns
        y = attention.norm(x) if self.shares else feed[0](x)
        up, gate = feed[1](y).chunk(2, -1)
        return x + attention(x, positions, allowed) + feed[3](functional.silu(gate) * up)


class Palm(Reference):
    """PaLM; ``parallel_block`` says whether a block has the paper's one norm or two."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        size, depth = settings["dim"], settings["depth"]
        self.add_module("0", nn.Embedding(settings["num_tokens"], size))
        for i in range(depth):
            self.add_module(str(i + 1), _PalmBlock(settings))
        self.add_module(str(depth + 1), _ScaledNorm(size))

    def logits(self, tokens: Tensor, positions: Tensor, allowed: Tensor) -> Tensor:
        embedding, *blocks, norm = self.children()
        x = embedding(tokens)
        for block in blocks:
            x = block(x, positions, allowed)
        return norm(x) @ embedding.weight.T * self.settings["logit_scale"]
