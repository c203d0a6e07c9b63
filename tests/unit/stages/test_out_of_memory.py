"""A process that gets no more memory says where, how much it asked for and what was planned."""

import re

import numpy as np
import pytest
import torch

from megalite.distributed.launch import Launch
from megalite.distributed.mesh import Mesh
from megalite.engine.model import Parts
from megalite.errors import OutOfMemory
from megalite.stages.out_of_memory import asked_for, told
from megalite.stages.ppo import PPOConfig
from megalite.stages.pretrain import PretrainConfig
from megalite.training.watchdog.heartbeat import Heartbeat

TOO_MUCH = 1 << 50


def memory_that_is_not_there(device: str = "cpu") -> None:
    torch.empty(TOO_MUCH, dtype=torch.uint8, device=device)


@pytest.mark.parametrize("config", [PretrainConfig(), PPOConfig()], ids=["pretrain", "ppo"])
def test_place_amount_and_plan_are_told(config):
    heartbeat = Heartbeat()
    heartbeat.step = 7
    heartbeat.enter("forward_backward", type("Model", (Parts,), {"under_way": (2, 4)}))
    with (
        pytest.raises(OutOfMemory) as caught,
        told(config, Launch(rank=3, world_size=4), Mesh.single(), heartbeat),
    ):
        memory_that_is_not_there()
    wanted = (
        r"rank 3 \(\S+\) in step 7, forward_backward of micro-batch 2 of 4: out of memory: it "
        r"asked for 1.05e\+06 GiB, and had [\d.]+ GiB at most; megalite plan says [\d.]+ GiB of "
        r"tensors \(parameters and optimizer [\d.]+, .*\): lower --train.micro_batch_size 1, "
    )
    assert re.match(wanted, str(caught.value))


def test_what_was_asked_for_is_read_from_what_each_allocator_says():
    with pytest.raises(RuntimeError) as caught:
        memory_that_is_not_there()
    assert asked_for(caught.value) == "1.05e+06 GiB"
    wrapped = RuntimeError("[Stage 1] failed to run forward")
    wrapped.__cause__ = caught.value
    assert asked_for(wrapped) == "1.05e+06 GiB"
    with pytest.raises(MemoryError) as caught:
        np.empty(TOO_MUCH, np.uint8)
    assert asked_for(caught.value) == "1.00 PiB"
    gpu = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a")
    assert asked_for(gpu) == "20.00 MiB"
    assert asked_for(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when ...")) == "more"
    assert asked_for(RuntimeError("Connection closed by peer")) is None


def test_another_error_stays_what_it_is():
    with (
        pytest.raises(RuntimeError, match="of its own"),
        told(PretrainConfig(), Launch(), Mesh.single(), Heartbeat()),
    ):
        raise RuntimeError("of its own")
