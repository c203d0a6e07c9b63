"""Floating-point operations of a model, and what the device could do: MFU.

MFU counts what the model needs; HFU also what recompute does again.

Source: Chowdhery et al. 2022, arXiv:2204.02311, appendix B; attention by its row intervals.
"""

import time
from typing import Any, Literal

import torch

from megalite.models.batch import Batch
from megalite.models.config import ModelConfig

PEAK_TFLOPS = {  # device name: (half precision with tensor cores, fp32), dense, vendor's sheets
    "A100": (312.0, 19.5),
    "A800": (312.0, 19.5),
    "H100": (989.0, 66.9),
    "H200": (989.0, 66.9),
    "H800": (989.0, 66.9),
    "V100": (125.0, 15.7),
    "A40": (149.7, 37.4),
    "A10": (125.0, 31.2),
    "L40": (181.0, 90.5),
    "T4": (65.0, 8.1),
}


def forward_flops(config: ModelConfig, batch: Batch) -> float:
    """Operations of one forward pass over the rows that aren't padding."""
    rows, pairs = _rows_pairs(batch.start, batch.end)
    per_row, per_pair = _block_costs(config)
    total = config.num_layers * (rows * per_row + pairs * per_pair)
    if config.is_encoder_decoder and batch.encoder_tokens is not None:
        encoder_rows, encoder_pairs = _rows_pairs(batch.encoder_start, batch.encoder_end)
        total += config.num_encoder_layers * (encoder_rows * per_row + encoder_pairs * per_pair)
        _, cross_pairs = _rows_pairs(batch.cross_start, batch.cross_end)
        total += config.num_layers * _cross_costs(config, rows, encoder_rows, cross_pairs)
    if config.head == "lm":
        total += 2.0 * rows * config.vocab_size * config.embedding_width
    return total


def _rows_pairs(start: torch.Tensor, end: torch.Tensor) -> tuple[float, float]:
    widths = (end - start).clamp(min=0)
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


def recompute_factor(kind: Literal["none", "selective", "full"]) -> float:
    """Operations done for each one the model needs: full recompute adds a forward pass."""
    return 4.0 / 3.0 if kind == "full" else 1.0


def peak_tflops(device: torch.device, precision: str) -> float:
    """What the device can do, in TFLOP/s: by its name on a GPU, a measured GEMM on a CPU.

    An unknown GPU is measured too.
    """
    if device.type == "cuda":
        name = _gpu_name(device)
        for known, (half, single) in PEAK_TFLOPS.items():
            if known in name:
                return single if precision == "fp32" else half
    return measured_tflops(device)


def _gpu_name(device: torch.device) -> str:
    try:
        import pynvml

        pynvml.nvmlInit()
        name: Any = pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(device.index or 0))
        return name.decode() if isinstance(name, bytes) else name
    except (ImportError, OSError, RuntimeError):
        return torch.cuda.get_device_name(device)


def measured_tflops(device: torch.device, size: int = 1024, trials: int = 20) -> float:
    """The best of a few square matrix products, in TFLOP/s."""
    a = torch.randn(size, size, device=device)
    best = float("inf")
    for _ in range(trials):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2.0 * size**3 / best / 1e12
