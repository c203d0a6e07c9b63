"""Operations that are reported against those that PyTorch counts while a step runs."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from megalite.distributed.mesh import Mesh, ParallelConfig
from megalite.engine.bubble import bubble_in_theory
from megalite.engine.build import build_model
from megalite.engine.cut import cut
from megalite.engine.recompute import recomputed_blocks
from megalite.models.batch import Batch, Stream
from megalite.models.config import ModelConfig
from megalite.models.outputs import Loss
from megalite.ops import mask as masks
from megalite.ops.backends import kernels
from megalite.training.metrics.flops import step_operations

B, S, S_ENCODER, V = 2, 9, 5, 50
SIZES = {"vocab_size": V, "hidden_size": 24, "num_layers": 3, "num_heads": 4, "ffn_size": 40}
MODELS = {
    "gqa": {"num_kv_heads": 2},
    "post": {"norm_position": "post", "gated": False},
    "t5": {"position": "relative", "num_encoder_layers": 2, "gated": False},
    "parallel": {"parallel_block": "one_norm", "gated": False},
}


def batch(config: ModelConfig) -> Batch:
    """Every row sees every other, so that a kernel's work follows from its shapes."""
    tokens = torch.arange(B * S).view(B, S) % V
    labels = tokens.clone()
    labels[:, :2] = -100
    whole = masks.full(B, S, S)
    rows = torch.arange(S, dtype=torch.int32).expand(B, S)
    encoder = cross = None
    if config.is_encoder_decoder:
        mask = masks.full(B, S_ENCODER, S_ENCODER)
        encoder = Stream(tokens[:, :S_ENCODER], rows[:, :S_ENCODER], mask)
        cross = masks.full(B, S, S_ENCODER)
    decoder = Stream(tokens, rows, whole)
    return Batch(decoder, labels, torch.arange(B), encoder=encoder, cross=cross)


def counter(products: int):
    """Operations of an attention kernel that makes some [Sq, Sk] products of width H."""

    def count(*shapes, out_shape=None, **_) -> int:
        q, k = shapes[:2] if products == 2 else shapes[1:3]
        return products * 2 * q[0] * q[1] * q[2] * q[3] * k[1]

    return count


def in_place_product(_total, left, right, out_shape=None, **_) -> int:
    """PyTorch's counter leaves it out."""
    return 2 * left[0] * left[1] * right[1]


@pytest.mark.parametrize(
    "parallel",
    [{}, {"recompute": "selective"}, {"recompute": "full"}]
    + [{"recompute": "full", "recompute_blocks": 1}],
)
@pytest.mark.parametrize("name", MODELS)
def test_reported_operations_are_those_that_run(name, parallel):
    config, parallel = ModelConfig(**SIZES | MODELS[name]), ParallelConfig(**parallel)
    model, data = build_model(config, Mesh.single(), parallel, seed=0), batch(config)
    ops = kernels(torch.empty(0))
    # forward: scores, values; backward: scores again, dV, dP, dQ, dK
    more = {ops.attention: counter(2), ops.attention_backward: counter(5)}
    more[torch.ops.aten.addmm_] = in_place_product
    with FlopCounterMode(display=False, custom_mapping=more) as counted:
        model.parts[0](data, Loss(1.0)).backward()
    expected = step_operations(config, data, recomputed_blocks(config, parallel))
    assert counted.get_total_flops() == expected.hardware
    assert expected.model < expected.hardware


def test_blocks_that_recompute_are_counted_over_all_stages():
    config = ModelConfig(num_layers=6, num_encoder_layers=3)
    layout = ParallelConfig(recompute="full", recompute_blocks=1, pp=3)
    holding = [(part.has_encoder, part.has_decoder) for part in cut(config, 3)]
    assert holding == [(True, True), (False, True), (False, True)]
    assert recomputed_blocks(config, layout) == (1, 3)
    assert recomputed_blocks(config, ParallelConfig(recompute="full")) == (3, 6)
    assert recomputed_blocks(config, ParallelConfig(recompute="selective")) == (0, 0)


@pytest.mark.parametrize(
    ("processes", "micro_batches", "chunks", "share"),
    [(1, 4, 1, 0.0), (2, 8, 1, 1 / 9), (4, 4, 1, 3 / 7), (4, 8, 2, 3 / 19)],
)
def test_a_bubble_in_theory(processes, micro_batches, chunks, share):
    assert bubble_in_theory(processes, micro_batches, chunks) == pytest.approx(share)
