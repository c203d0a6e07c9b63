"""What a process computes on, and in which number format: a GPU where our kernels can run on it."""

import os
import warnings
from typing import Literal

import torch

from megalite.distributed.launch import Launch
from megalite.errors import ConfigError, tell
from megalite.models.config import ModelConfig
from megalite.ops.backends import UNCOMPILED, compiled, unusable
from megalite.training.config import RunConfig

Precision = Literal["fp32", "bf16", "fp16"]
PrecisionWish = Literal["auto", "fp32", "bf16", "fp16"]
BF16_CAPABILITY = (8, 0)  # from which on GPUs have bf16
HEAD_STEP, MOST_HEAD = 8, 256  # of the CUDA attention kernels
MOST_HEAD_OF_SMALL_BLOCKS = 192  # with a backward pass, in 99 KiB of shared memory a block


def choose_device(run: RunConfig, launch: Launch) -> torch.device:
    """This process's device; on a CPU, the number of threads too.

    ``auto`` takes a GPU only where the CUDA kernels can run on it; the first process says on
    standard error why a GPU that is there is left alone, and where operators aren't compiled.

    Raises:
        ConfigError: CUDA is asked for and can't be had, or there are fewer GPUs than processes.
    """
    fault = _fault_of_gpus() if run.device != "cpu" else None
    if run.device == "cuda" and fault is not None:
        raise ConfigError(f"--run.device cuda: {fault}, or choose cpu")
    if run.device == "cpu" or fault is not None:
        if fault is not None and torch.cuda.is_available() and launch.rank == 0:
            tell(f"--run.device auto: takes the CPU: {fault}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if not compiled() and launch.rank == 0:
                tell(UNCOMPILED)
        cores = os.cpu_count() or 1
        torch.set_num_threads(run.threads or max(cores // launch.local_world_size, 1))
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if launch.local_world_size > count:
        raise ConfigError(
            f"--run.device {run.device}: each process needs a GPU of its own; this node has "
            f"{launch.local_world_size} processes and {count} GPUs: start {count}, or choose cpu"
        )
    device = torch.device("cuda", launch.local_rank)
    torch.cuda.set_device(device)
    return device


def usable_gpus() -> int:
    """GPUs of this node that ``--run.device auto`` takes; 0: it takes the CPU."""
    return 0 if _fault_of_gpus() else torch.cuda.device_count()


def _fault_of_gpus() -> str | None:
    """Why no GPU can be used here, and what to do; None where they can."""
    if not torch.cuda.is_available():
        build = " and this PyTorch is built without CUDA" if torch.version.cuda is None else ""
        return f"there is no CUDA device here{build}: use auto"
    reason = unusable(torch.device("cuda", 0))
    return None if reason is None else f"{torch.cuda.get_device_name(0)} can't be used: {reason}"


def choose_precision(
    wish: PrecisionWish, device: torch.device, key: str = "train.precision"
) -> Precision:
    """The number format of compute on a device; auto: fp32 on a CPU, 16 bits on a GPU.

    Args:
        wish: what the config says.
        device: that computes.
        key: of the config, for the message.

    Raises:
        ConfigError: a GPU's attention has no such format.
    """
    if device.type == "cpu":
        return "fp32" if wish == "auto" else wish
    has_bf16 = torch.cuda.get_device_capability(device) >= BF16_CAPABILITY
    return precision_of_gpu(wish, has_bf16, torch.cuda.get_device_name(device), key)


def precision_of_gpu(
    wish: PrecisionWish, has_bf16: bool, name: str, key: str = "train.precision"
) -> Precision:
    """The number format of compute on a GPU called ``name``.

    Raises:
        ConfigError: its attention has no such format.
    """
    if wish == "auto":
        return "bf16" if has_bf16 else "fp16"
    offer = "auto, bf16 or fp16" if has_bf16 else "auto or fp16"
    if wish == "fp32":
        raise ConfigError(
            f"--{key} fp32: attention on a GPU computes in 16 bits: use {offer} (parameters and "
            "optimizer state stay fp32), or --run.device cpu"
        )
    if wish == "bf16" and not has_bf16:
        raise ConfigError(
            f"--{key} bf16: {name} has none, as GPUs before compute capability 8.0: use {offer}"
        )
    return wish


def check_heads(model: ModelConfig, device: torch.device, learns: bool = True) -> None:
    """Refuse a model whose heads a GPU's attention kernels don't take.

    Args:
        model: its shape.
        device: that computes.
        learns: whether there is a backward pass.

    Raises:
        ConfigError: it names the size and what fits.
    """
    if device.type == "cpu":
        return
    size, most = model.head_dim, MOST_HEAD
    if learns and _has_small_blocks(device):
        most = MOST_HEAD_OF_SMALL_BLOCKS
    if size % HEAD_STEP or size > most:
        raise ConfigError(
            f"--model: a head has {size} dimensions; attention on this GPU takes multiples of "
            f"{HEAD_STEP} up to {most}: change hidden_size, num_heads or head_size, "
            "or use --run.device cpu"
        )


def _has_small_blocks(device: torch.device) -> bool:
    """Whether a block may have 99 KiB of shared memory only, where other GPUs have 163 or more."""
    capability = torch.cuda.get_device_capability(device)
    return capability in ((8, 6), (8, 9)) or capability[0] == 12
