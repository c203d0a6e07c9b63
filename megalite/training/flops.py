"""Floating-point operations of a model, and what the device could do: MFU.

MFU counts what the model needs; HFU also what recompute does again.

Source: Chowdhery et al. 2022, arXiv:2204.02311, appendix B; attention by its row intervals.
"""

import itertools
import re
import time
from dataclasses import dataclass
from typing import Any

import torch

from megalite.models.batch import Batch
from megalite.models.config import ModelConfig
from megalite.ops import RowIntervals

PEAK_TFLOPS = {  # words of a device's name: (half precision on tensor cores, fp32), dense
    "H100 PCIe": (756.0, 51.2),
    "H100 NVL": (835.0, 60.0),
    "H100": (989.0, 66.9),
    "H200": (989.0, 66.9),
    "H800": (989.0, 66.9),
    "A100": (312.0, 19.5),
    "A800": (312.0, 19.5),
    "V100-PCIE": (112.0, 14.0),
    "V100": (125.0, 15.7),
    "L40S": (362.0, 91.6),
    "L40": (181.0, 90.5),
    "L4": (121.0, 30.3),
    "A40": (149.7, 37.4),
    "A30": (165.0, 10.3),
    "A10G": (70.0, 31.5),
    "A10": (125.0, 31.2),
    "T4": (65.0, 8.1),
}  # of the vendor's data sheets


@dataclass(frozen=True)
class Operations:
    """Floating-point operations, of matrix products and attention, over rows that aren't padding.

    Attributes:
        model: what a training step needs: three times its forward pass.
        hardware: what is done: recomputed blocks, and the scores that attention's backward pass
            always makes again, too.
    """

    model: float
    hardware: float


def forward_flops(config: ModelConfig, batch: Batch) -> float:
    """Operations of one forward pass over the rows that aren't padding."""
    return step_operations(config, batch).model / 3.0


def step_operations(
    config: ModelConfig, batch: Batch, recomputed: tuple[int, int] = (0, 0)
) -> Operations:
    """Operations of a micro-batch, forward and backward.

    Args:
        config: of the model.
        batch: the head computes its rows with a target only.
        recomputed: encoder and decoder blocks whose whole forward pass is made again.
    """
    rows, pairs = _rows_pairs(batch.decoder.mask)
    per_row, per_pair = _block_costs(config)
    decoder, scores = rows * per_row + pairs * per_pair, config.num_layers * pairs
    encoder = encoder_rows = 0.0
    if batch.encoder is not None and batch.cross is not None:
        encoder_rows, encoder_pairs = _rows_pairs(batch.encoder.mask)
        encoder = encoder_rows * per_row + encoder_pairs * per_pair
        _, cross_pairs = _rows_pairs(batch.cross)
        decoder += _cross_costs(config, rows, encoder_rows, cross_pairs)
        scores += config.num_encoder_layers * encoder_pairs + config.num_layers * cross_pairs
    head = 0.0
    if config.head == "lm":  # a reward model's batch has no targets
        head = 2.0 * batch.num_targets * config.vocab_size * config.embedding_width
    forward = config.num_encoder_layers * encoder + config.num_layers * decoder + head
    skipped = _skipped_in_recompute(config)
    again = recomputed[0] * (encoder - skipped * encoder_rows)
    again += recomputed[1] * (decoder - skipped * rows)
    return Operations(3.0 * forward, 3.0 * forward + again + scores * per_pair / 2)


def _skipped_in_recompute(config: ModelConfig) -> float:
    """Operations a row that recompute leaves out: nothing needs the last product's result again."""
    if config.norm_position == "post":
        return 0.0
    return 2.0 * config.ffn_size * config.hidden_size


def _rows_pairs(mask: RowIntervals) -> tuple[float, float]:
    widths = (mask.end - mask.start).clamp(min=0)
    return float((widths > 0).sum()), float(widths.sum())


def _block_costs(config: ModelConfig) -> tuple[float, float]:
    """Operations a row (matrices) and a (query, key) pair (attention) in one block."""
    size, heads = config.hidden_size, config.head_dim * config.num_heads
    attention = 2 * size * config.head_dim * (config.num_heads + config.kv_heads)
    ffn = (3 if config.gated else 2) * size * config.ffn_size
    return 2.0 * (attention + ffn), 4.0 * heads


def _cross_costs(config: ModelConfig, rows: float, encoder_rows: float, pairs: float) -> float:
    size, heads = config.hidden_size, config.head_dim * config.num_heads
    keys = config.head_dim * config.kv_heads
    return 4.0 * (rows * size * heads + encoder_rows * size * keys + pairs * heads)


def peak_tflops(device: torch.device, precision: str) -> float:
    """What the device can do, in TFLOP/s: by its name on a GPU, a measured GEMM on a CPU.

    An unknown GPU is measured too.
    """
    known = known_tflops(_gpu_name(device), precision) if device.type == "cuda" else None
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    return known or measured_tflops(device, dtype)


def known_tflops(name: str, precision: str) -> float | None:
    """The data sheet's TFLOP/s of a device called ``name``, or None.

    Whole words count: an RTX A1000 is no A100.
    """
    for known, (half, single) in PEAK_TFLOPS.items():
        if re.search(rf"\b{re.escape(known)}\b", name):
            return single if precision == "fp32" else half
    return None


def _gpu_name(device: torch.device) -> str:
    """The name by NVML, which numbers devices its own way and is asked by their UUID."""
    try:
        import pynvml
    except ImportError:
        return torch.cuda.get_device_name(device)
    try:
        pynvml.nvmlInit()
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        name: Any = pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByUUID(uuid))
        return name.decode() if isinstance(name, bytes) else name
    except pynvml.NVMLError:
        return torch.cuda.get_device_name(device)


def measured_tflops(device: torch.device, dtype: torch.dtype, seconds: float = 0.5) -> float:
    """The best of many square matrix products, in TFLOP/s.

    Small ones among them end before the system gives the core to another process.
    """
    factors = [torch.randn(size, size, device=device).to(dtype) for size in (512, 1024)]
    best, until = 0.0, time.perf_counter() + seconds
    for a in itertools.cycle(factors):
        started = _now(device)
        a @ a
        best = max(best, 2.0 * len(a) ** 3 / (_now(device) - started) / 1e12)
        if time.perf_counter() > until:
            break
    return best


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
