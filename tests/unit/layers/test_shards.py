"""What a process holds of a tensor, and its gradient."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from megalite.layers.shards import gradient_of


@pytest.fixture
def second_of_three():
    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=3)
    yield DeviceMesh("cpu", torch.arange(3), mesh_dim_names=("tp",))
    dist.destroy_process_group()


def test_a_gathered_gradient_is_cut_as_its_parameter_is(second_of_three):
    whole = torch.arange(10.0).view(2, 5)  # columns 2 + 2 + 1

    def placed(cut):
        return distribute_tensor(whole, second_of_three, [cut], src_data_rank=None)

    parameter = nn.Parameter(placed(Shard(1)))
    parameter.grad = placed(Replicate())
    gradient = gradient_of(parameter)
    assert gradient is parameter.grad
    assert torch.equal(gradient.to_local(), whole[:, 2:4])


def test_a_gradient_in_its_place_stays_what_it_is(second_of_three):
    whole = distribute_tensor(torch.ones(3, 2), second_of_three, [Shard(0)], src_data_rank=None)
    for tensor in (whole, torch.ones(3, 2)):
        parameter = nn.Parameter(tensor)
        parameter.grad = gradient = tensor.clone()
        assert gradient_of(parameter) is gradient
