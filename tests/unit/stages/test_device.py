"""The device and the number format that a run takes, and what is said where it can't have them."""

import pytest
import torch

from megalite.distributed.launch import Launch
from megalite.errors import ConfigError
from megalite.models.config import ModelConfig
from megalite.ops.backends import available
from megalite.stages.device import (
    check_heads,
    choose_device,
    choose_precision,
    precision_of_gpu,
    usable_gpus,
)
from megalite.training.config import RunConfig

GPU = torch.device("cuda", 0)
without_kernels = pytest.mark.skipif(available("cuda"), reason="this build has CUDA kernels")


@pytest.fixture(params=[(7, 0), (9, 0)], ids=["V100", "H100"])
def gpu(request, monkeypatch):
    """PyTorch says that there is a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: request.param)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA Some GPU")


@without_kernels
def test_auto_leaves_a_gpu_without_kernels_alone_and_says_what_to_build(gpu, capsys):
    threads = torch.get_num_threads()
    assert choose_device(RunConfig(threads=threads), Launch()) == torch.device("cpu")
    (line,) = capsys.readouterr().err.splitlines()
    assert "--run.device auto: takes the CPU: NVIDIA Some GPU can't be used" in line
    assert "MEGALITE_CUDA=1 pip install" in line
    choose_device(RunConfig(threads=threads), Launch(rank=1, world_size=2))
    assert capsys.readouterr().err == ""
    assert usable_gpus() == 0


@without_kernels
def test_cuda_without_kernels_is_refused_with_what_to_build(gpu):
    with pytest.raises(ConfigError, match="--run.device cuda: .*no CUDA kernels: .*MEGALITE_CUDA"):
        choose_device(RunConfig(device="cuda"), Launch())


def test_a_gpu_before_the_kernels_capability_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (6, 1))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "GTX 1080")
    with pytest.raises(ConfigError, match=r"GTX 1080 .*capability is 6\.1, .*need 7\.0"):
        choose_device(RunConfig(device="cuda"), Launch())


def test_the_cpu_is_silent(capsys):
    assert choose_device(RunConfig(device="cpu"), Launch()).type == "cpu"
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu_is_refused():
    with pytest.raises(ConfigError, match="--run.device cuda: there is no CUDA device here"):
        choose_device(RunConfig(device="cuda"), Launch())


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_more_processes_than_gpus_are_refused():
    count = torch.cuda.device_count()
    with pytest.raises(ConfigError, match=f"{count + 1} processes and {count} GPUs"):
        choose_device(RunConfig(device="cuda"), Launch(local_world_size=count + 1))


def test_a_cpu_computes_in_fp32_or_as_it_is_told():
    chosen = [choose_precision(w, torch.device("cpu")) for w in ("auto", "fp32", "bf16", "fp16")]
    assert chosen == ["fp32", "fp32", "bf16", "fp16"]


def test_a_gpu_computes_in_bf16_where_it_has_it(gpu):
    is_ampere = torch.cuda.get_device_capability(GPU) >= (8, 0)
    assert choose_precision("auto", GPU) == ("bf16" if is_ampere else "fp16")
    assert choose_precision("fp16", GPU) == "fp16"
    with pytest.raises(ConfigError, match="--precision fp32: attention on a GPU .* use auto"):
        choose_precision("fp32", GPU, "precision")
    if is_ampere:
        assert choose_precision("bf16", GPU) == "bf16"
    else:
        with pytest.raises(ConfigError, match="--train.precision bf16: NVIDIA Some GPU has none"):
            choose_precision("bf16", GPU)


def test_a_plan_takes_the_format_of_the_device_that_it_is_for():
    assert precision_of_gpu("auto", False, "v100-32gb") == "fp16"
    with pytest.raises(ConfigError, match="v100-32gb has none"):
        precision_of_gpu("bf16", False, "v100-32gb")


@pytest.mark.parametrize(
    ("capability", "most"), [((7, 0), 256), ((8, 0), 256), ((8, 6), 192), ((12, 0), 192)]
)
def test_heads_that_no_kernel_takes_are_refused_on_a_gpu(capability, most, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)

    def model(size: int) -> ModelConfig:
        return ModelConfig(hidden_size=80, num_heads=4, head_size=size)

    for size in (20, most + 8):
        check_heads(model(size), torch.device("cpu"))
        with pytest.raises(ConfigError, match=f"a head has {size} dimensions; .* up to {most}:"):
            check_heads(model(size), GPU)
    check_heads(model(most), GPU)
    check_heads(model(256), GPU, learns=False)
