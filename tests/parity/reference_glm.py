"""References of ChatGLM-6B, GLM-130B and ChatGLM2-6B.

Source: modeling_chatglm.py beside the weights of THUDM/chatglm-6b and THUDM/chatglm2-6b, and
sat/model/official/glm130B_model.py of THUDM/SwissArmyTransformer, which THUDM/GLM-130B runs.
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


class _Linears(nn.Module):
    """Named linear layers."""

    def __init__(self, **shapes: tuple[int, int, bool]) -> None:
        super().__init__()
        for name, (inner, outer, has_bias) in shapes.items():
            self.add_module(name, nn.Linear(inner, outer, bias=has_bias))


class _DeepNormBlock(nn.Module):
    def __init__(self, settings: dict[str, Any], gated: bool) -> None:
        super().__init__()
        size, inner = settings["hidden_size"], settings["inner_hidden_size"]
        eps = settings["layernorm_epsilon"]
        self.heads, self.gated = settings["num_attention_heads"], gated
        self.two_axes = settings["position_encoding_2d"]
        self.alpha = (2 * settings["num_layers"]) ** 0.5
        self.input_layernorm = nn.LayerNorm(size, eps=eps)
        self.post_attention_layernorm = nn.LayerNorm(size, eps=eps)
        self.attention = _Linears(query_key_value=(size, 3 * size, True), dense=(size, size, True))
        self.mlp = _Linears(
            dense_h_to_4h=(size, inner * (2 if gated else 1), True),
            dense_4h_to_h=(inner, size, True),
        )

    def _turn(self, x: Tensor, positions: Tensor) -> Tensor:
        if not self.two_axes:
            return turn_halves(x, positions)
        if positions.dim() == 2:
            positions = torch.stack((positions, torch.zeros_like(positions)), -1)
        halves = x.chunk(2, -1)
        return torch.cat([turn_halves(h, positions[..., i]) for i, h in enumerate(halves)], -1)

    def _attend(self, x: Tensor, positions: Tensor, allowed: Tensor) -> Tensor:
        mixed = self.attention.query_key_value(x).unflatten(-1, (self.heads, -1))
        q, k, v = mixed.chunk(3, -1)
        q, k = self._turn(q, positions), self._turn(k, positions)
        return self.attention.dense(softmax_attention(q, k, v, allowed))

    def _feed(self, x: Tensor) -> Tensor:
        inner = self.mlp.dense_h_to_4h(x)
        if self.gated:
            up, gate = inner.chunk(2, -1)
            inner = up * functional.gelu(gate)
        else:
            cube = inner + 0.044715 * inner**3
            inner = 0.5 * inner * (1.0 + torch.tanh(math.sqrt(2 / math.pi) * cube))
        return self.mlp.dense_4h_to_h(inner)

    def forward(self, x: Tensor, positions: Tensor, allowed: Tensor) -> Tensor:
        normed = self.input_layernorm(x)
        x = normed * self.alpha + self._attend(normed, positions, allowed)
        normed = self.post_attention_layernorm(x)
        return normed * self.alpha + self._feed(normed)


class DeepNormModel(Reference):
    """ChatGLM-6B, or GLM-130B where ``model_type`` says so."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        size, gated = settings["hidden_size"], settings["model_type"] == "glm-130b"
        self.transformer = nn.Module()
        self.transformer.word_embeddings = nn.Embedding(settings["vocab_size"], size)
        self.transformer.layers = nn.ModuleList(
            _DeepNormBlock(settings, gated) for _ in range(settings["num_layers"])
        )
        eps = settings["layernorm_epsilon"]
        self.transformer.final_layernorm = nn.LayerNorm(size, eps=eps)
        if not settings.get("tie_word_embeddings", True):
            self.lm_head = nn.Linear(size, settings["vocab_size"], bias=False)

    def logits(self, tokens: Tensor, positions: Tensor, allowed: Tensor) -> Tensor:
        x = self.transformer.word_embeddings(tokens)
        for layer in self.transformer.layers:
            x = layer(x, positions, allowed)
        x = self.transformer.final_layernorm(x)
        if hasattr(self, "lm_head"):
            return self.lm_head(x)
        return x @ self.transformer.word_embeddings.weight.T


class _GroupedBlock(nn.Module):
    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        size, inner = settings["hidden_size"], settings["ffn_hidden_size"]
        self.heads, self.width = settings["num_attention_heads"], settings["kv_channels"]
        self.groups = settings["multi_query_group_num"]
        rows = (self.heads + 2 * self.groups) * self.width
        eps, has_bias = settings["layernorm_epsilon"], settings["add_qkv_bias"]
        self.input_layernorm = RootMeanSquare(size, eps)
        self.post_attention_layernorm = RootMeanSquare(size, eps)
        self.self_attention = _Linears(
            query_key_value=(size, rows, has_bias), dense=(self.heads * self.width, size, False)
        )
        self.mlp = _Linears(
            dense_h_to_4h=(size, 2 * inner, False), dense_4h_to_h=(inner, size, False)
        )

    def _turn(self, x: Tensor, positions: Tensor) -> Tensor:
        half = self.width // 2
        return torch.cat((turn_neighbours(x[..., :half], positions), x[..., half:]), -1)

    def forward(self, x: Tensor, positions: Tensor, allowed: Tensor) -> Tensor:
        mixed = self.self_attention.query_key_value(self.input_layernorm(x))
        heads = mixed.unflatten(-1, (-1, self.width))
        q, k, v = heads.split([self.heads, self.groups, self.groups], 2)
        ratio = self.heads // self.groups
        k, v = (t.repeat_interleave(ratio, 2) for t in (self._turn(k, positions), v))
        mixed = softmax_attention(self._turn(q, positions), k, v, allowed)
        x = x + self.self_attention.dense(mixed)
        gate, up = self.mlp.dense_h_to_4h(self.post_attention_layernorm(x)).chunk(2, -1)
        return x + self.mlp.dense_4h_to_h(functional.silu(gate) * up)


class ChatGLM2(Reference):
    """ChatGLM2-6B."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        size, words = settings["hidden_size"], settings["padded_vocab_size"]
        self.transformer = nn.Module()
        self.transformer.embedding = nn.Module()
        self.transformer.embedding.word_embeddings = nn.Embedding(words, size)
        self.transformer.encoder = nn.Module()
        self.transformer.encoder.layers = nn.ModuleList(
            _GroupedBlock(settings) for _ in range(settings["num_layers"])
        )
        eps = settings["layernorm_epsilon"]
        self.transformer.encoder.final_layernorm = RootMeanSquare(size, eps)
        self.transformer.output_layer = nn.Linear(size, words, bias=False)

    def logits(self, tokens: Tensor, positions: Tensor, allowed: Tensor) -> Tensor:
        x = self.transformer.embedding.word_embeddings(tokens)
        for layer in self.transformer.encoder.layers:
            x = layer(x, positions, allowed)
        return self.transformer.output_layer(self.transformer.encoder.final_layernorm(x))
