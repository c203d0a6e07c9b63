"""What holds of collectives without other processes: where shards begin, and a process alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.tensor import Shard

from megalite.distributed import collectives
from megalite.distributed.mesh import Axis

ALONE = Axis("tp")


@given(st.integers(0, 60), st.integers(1, 17))
def test_shards_are_those_of_torch_chunk_and_of_dtensor(size: int, processes: int):
    chunks = [chunk.tolist() for chunk in torch.arange(size).chunk(processes)] if size else []
    chunks += [[]] * (processes - len(chunks))
    for rank, chunk in enumerate(chunks):
        first, last = collectives.shard_bounds(size, Axis("tp", processes, rank))
        assert list(range(first, last)) == chunk
        length, offset = Shard.local_shard_size_and_offset(size, processes, rank)
        assert last - first == length
        assert length == 0 or first == offset


@pytest.mark.parametrize(
    "call",
    [
        lambda x: collectives.copy_to(x, ALONE),
        lambda x: collectives.reduce_from(x, ALONE),
        lambda x: collectives.gather_sequence(x, ALONE, 5),
        lambda x: collectives.scatter_sum_sequence(x, ALONE),
        lambda x: collectives.gather_copies(x, ALONE, 1, 5),
    ],
    ids=["copy_to", "reduce_from", "gather_sequence", "scatter_sum_sequence", "gather_copies"],
)
def test_a_process_alone_gets_its_argument_itself(call):
    x = torch.randn(2, 5, 3, requires_grad=True)
    assert call(x) is x


def test_a_process_alone_stacks_its_own_part():
    x = torch.randn(5, 3).t()
    assert torch.equal(collectives.gather_stacked(x, ALONE), x[:, None])
