"""Pipeline parts: every block in one of them, and the slowest as fast as any cut allows."""

from itertools import combinations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from megalite.distributed.mesh import ParallelConfig
from megalite.engine.cut import cut, parts_of
from megalite.models.config import ModelConfig
from megalite.models.part import Part

SIZES = {"num_heads": 6, "hidden_size": 48, "ffn_size": 96, "vocab_size": 48}
TWO_STACKS = ModelConfig(num_encoder_layers=5, num_layers=2, **SIZES)


@pytest.mark.parametrize(
    ("count", "encoder_stages", "blocks"),
    [
        (3, 0, [(2, 0), (3, 0), (0, 2)]),
        (3, 1, [(5, 0), (0, 1), (0, 1)]),
        (3, 2, [(2, 0), (3, 0), (0, 2)]),
        (2, 0, [(4, 0), (1, 2)]),
        (2, 1, [(5, 0), (0, 2)]),
    ],
)
def test_each_stack_is_cut_by_its_own_cost(count, encoder_stages, blocks):
    """A stage holds the encoder's end and the decoder's beginning only where nothing forbids it."""
    parts = cut(TWO_STACKS, count, encoder_stages)
    held = [(p.encoder[1] - p.encoder[0], p.decoder[1] - p.decoder[0]) for p in parts]
    assert held == blocks
    assert parts[-1].decoder[1] == 2
    assert all(part.ends == (part.index == count - 1) for part in parts)


@st.composite
def models(draw) -> ModelConfig:
    """Shapes whose encoder block, decoder block and head weigh about alike or very differently."""
    return ModelConfig(
        num_encoder_layers=draw(st.integers(0, 5)),
        num_layers=draw(st.integers(1, 6)),
        num_heads=6,
        num_kv_heads=draw(st.sampled_from([0, 1, 2])),
        hidden_size=draw(st.sampled_from([12, 48])),
        ffn_size=draw(st.sampled_from([1, 40, 500])),
        gated=draw(st.booleans()),
        vocab_size=draw(st.sampled_from([2, 50, 700, 9000])),
        head=draw(st.sampled_from(["lm", "value"])),
    )


@st.composite
def cuts(draw) -> tuple[ModelConfig, int, int]:
    """A model, a number of parts, and how many of them the encoder has (0: any)."""
    model = draw(models())
    encoder, decoder = model.num_encoder_layers, model.num_layers
    count = draw(st.integers(1, encoder + decoder))
    least, most = max(1, count - decoder), min(count - 1, encoder)
    stages = draw(st.integers(least, most)) if least <= most and draw(st.booleans()) else 0
    return model, count, stages


def weights_met(config: ModelConfig) -> tuple[list[int], int]:
    """Weights of matrices that a token meets in each block, and in the head."""
    width = config.head_dim
    query_output = 2 * config.hidden_size * config.num_heads * width
    attention = query_output + 2 * config.hidden_size * config.kv_heads * width
    inner = config.hidden_size * config.ffn_size * (3 if config.gated else 2)
    encoders = [attention + inner] * config.num_encoder_layers
    both = attention * (2 if config.num_encoder_layers else 1) + inner
    outputs = config.vocab_size if config.head == "lm" else 1
    return encoders + [both] * config.num_layers, config.hidden_size * outputs


def blocks_of(part: Part, config: ModelConfig) -> list[int]:
    """The numbers of a part's blocks, the encoder's first."""
    border = config.num_encoder_layers
    return [*range(*part.encoder), *(border + number for number in range(*part.decoder))]


def slowest(ends: tuple[int, ...], costs: list[int]) -> int:
    return max(sum(costs[a:b]) for a, b in zip((0, *ends), (*ends, len(costs)), strict=True))


def least_slowest(costs: list[int], count: int) -> int:
    """Of every way to cut ``costs`` into ``count`` runs, none empty, the least largest sum."""
    return min(slowest(ends, costs) for ends in combinations(range(1, len(costs)), count - 1))


@given(cuts())
def test_every_block_is_in_one_part_and_none_is_empty(case):
    model, count, encoder_stages = case
    parts = cut(model, count, encoder_stages)
    held = [blocks_of(part, model) for part in parts]
    assert sum(held, []) == list(range(model.num_encoder_layers + model.num_layers))
    assert all(held)
    assert [(part.index, part.count) for part in parts] == [(i, count) for i in range(count)]
    assert [part.ends for part in parts] == [False] * (count - 1) + [True]
    starts = [part.starts_encoder for part in parts], [part.starts_decoder for part in parts]
    assert [sum(flags) for flags in starts] == [model.is_encoder_decoder, 1]


BORDER = {"num_layers": 4, "num_heads": 6, "hidden_size": 12}  # with a head of about a block


@example((ModelConfig(**BORDER, num_kv_heads=1, ffn_size=1, gated=False, vocab_size=40), 2, 0))
@example((ModelConfig(**BORDER, ffn_size=40, gated=False, vocab_size=150), 2, 0))
@example((ModelConfig(**BORDER, ffn_size=40, gated=True, vocab_size=150), 2, 0))
@given(cuts())
def test_the_slowest_part_is_as_fast_as_any_cut_allows(case):
    """By trying all of them; an encoder with stages of its own is cut apart from its decoder."""
    model, count, encoder_stages = case
    costs, head = weights_met(model)
    costs[-1] += head
    held = [blocks_of(part, model) for part in cut(model, count, encoder_stages)]
    sums = [sum(costs[block] for block in blocks) for blocks in held]
    if encoder_stages == 0:
        assert max(sums) == least_slowest(costs, count)
        return
    border = model.num_encoder_layers
    assert [blocks[-1] < border for blocks in held].count(True) == encoder_stages
    assert max(sums[:encoder_stages]) == least_slowest(costs[:border], encoder_stages)
    assert max(sums[encoder_stages:]) == least_slowest(costs[border:], count - encoder_stages)


@given(cuts(), st.integers(1, 3))
def test_a_layout_has_a_part_for_each_chunk_of_each_process(case, chunks):
    model, pp, _ = case
    blocks = model.num_encoder_layers + model.num_layers
    parallel = ParallelConfig(pp=pp, chunks_per_rank=chunks if pp * chunks <= blocks else 1)
    parts = parts_of(model, parallel)
    assert len(parts) == (1 if pp == 1 else pp * parallel.chunks_per_rank)
    assert parts == ([Part.whole(model)] if pp == 1 else cut(model, len(parts)))
