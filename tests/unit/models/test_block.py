"""What a block of every kind does with its sub-layers: each is called once, as a module."""

from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from megalite.distributed.mesh import Mesh
from megalite.models.attention import Attention, CrossAttention
from megalite.models.block import Block
from megalite.models.config import ModelConfig
from megalite.models.context import Context
from megalite.models.feed_forward import FeedForward
from megalite.models.norm import Norm
from megalite.ops import mask as masks

B, S, S_ENCODER, D = 2, 5, 3, 12
KINDS = {
    "pre": {},
    "post": {"norm_position": "post"},
    "one norm": {"parallel_block": "one_norm"},
    "two norms": {"parallel_block": "two_norms"},
    "both": {"norm_position": "both", "query_key_norm": True, "windows": (2,)},
    "cross, both": {"num_encoder_layers": 1, "norm_position": "both", "norm_plus_one": True},
    "cross": {"num_encoder_layers": 1},
    "cross, post": {"num_encoder_layers": 1, "norm_position": "post"},
}

SUBLAYERS = (Attention, CrossAttention, FeedForward)


def block(kind: str) -> Block:
    """A block of no bias, whose sub-layers may be taken out."""
    config = ModelConfig(
        hidden_size=D, num_heads=3, ffn_size=7, position="none", init_std=0.3, **KINDS[kind]
    )
    made = Block(config, Mesh.single(), "decoder.layers.0", config.is_encoder_decoder)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made


def run(made: Block) -> tuple[Tensor, Tensor]:
    """What goes in, and what comes out."""
    cross = masks.cross(torch.tensor([2, 3]), S, S_ENCODER)
    context = Context(S, masks.causal(B, S), cross)
    x, memory = torch.randn(B, S, D), torch.randn(B, S_ENCODER, D)
    return x, made(x, context, memory)


@pytest.mark.parametrize("kind", KINDS)
def test_a_hook_on_a_sublayer_fires_once_a_pass(kind):
    made, seen = block(kind), Counter()

    def count(module: nn.Module, _inputs: tuple, output: Tensor) -> None:
        assert output.shape == (B, S, D)
        seen[type(module)] += 1

    for module in made.modules():
        if isinstance(module, SUBLAYERS):
            module.register_forward_hook(count)
    for number in (1, 2):
        run(made)
        theirs = {Attention: number, FeedForward: number}
        assert seen == theirs | ({CrossAttention: number} if "cross" in kind else {})


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_hook_gives_is_what_the_block_adds(kind):
    """A block whose sub-layers give 0 is the residual stream, or its norms one after another."""
    made = block(kind)
    x, y = run(made)
    assert not torch.allclose(x, y)
    for module in made.modules():
        if isinstance(module, SUBLAYERS):
            module.register_forward_hook(lambda _module, _inputs, output: torch.zeros_like(output))
    x, y = run(made)
    if "post" in kind:
        for norm in (module for module in made.children() if isinstance(module, Norm)):
            x = norm(x)
    assert torch.equal(x, y)
