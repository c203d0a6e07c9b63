"""Seconds of a device's work: products, attention, and what is bound by memory."""

import math
from dataclasses import dataclass

from megalite.plan.constants import Constants
from megalite.plan.devices import Device

TILE = (256, 128)  # rows and columns that a multiprocessor computes at a time
ALIGNED = 64  # numbers of 16 bits in the 128 bytes that are read at a time
OFF_TENSOR_CORES = 0.125  # a quarter of the rate by the data sheet, and half of what is read
VECTOR = 8  # numbers that a tensor core's product takes at a time


@dataclass(frozen=True)
class Kernels:
    """What a device takes for its work.

    Attributes:
        device: by its data sheet.
        constants: how much of it each kind of work gets.
        is_half: whether numbers have 16 bits.
    """

    device: Device
    constants: Constants
    is_half: bool = True

    @property
    def width(self) -> int:
        """Bytes of a number."""
        return 2 if self.is_half else 4

    @property
    def peak(self) -> float:
        """Operations a second."""
        device = self.device
        return 1e12 * (device.half_tflops if self.is_half else device.single_tflops)

    def product(self, rows: float, columns: float, depth: float) -> float:
        """Seconds of [rows, depth] x [depth, columns]."""
        if min(rows, columns, depth) <= 0:
            return 0.0
        constants = self.constants
        share = constants.product * depth / (depth + constants.half_depth)
        share *= self._tiles(rows, columns) * alignment(columns) * alignment(depth)
        moved = self.width * (rows * depth + depth * columns + rows * columns)
        return max(2.0 * rows * columns * depth / (self.peak * share), self.moved(moved))

    def _tiles(self, rows: float, columns: float) -> float:
        """The share of computed tiles that is wanted: edges, and the last round's idle ones."""
        best = 0.0
        for height, breadth in (TILE, TILE[::-1], (TILE[1], TILE[1] // 2)):
            down, across = math.ceil(rows / height), math.ceil(columns / breadth)
            tiles, at_once = down * across, self.device.multiprocessors
            rounds = math.ceil(tiles / at_once) * at_once
            small = 0.85 if height * breadth < TILE[0] * TILE[1] else 1.0
            wanted = rows * columns / (down * height * across * breadth)
            best = max(best, small * wanted * (tiles / rounds))
        return best

    def both_gradients(self, rows: float, columns: float, depth: float) -> float:
        """Seconds of the two products of a product's backward pass."""
        return self.product(rows, depth, columns) + self.product(columns, depth, rows)

    def moved(self, bytes_: float) -> float:
        """Seconds to read or write so many bytes of the device's memory."""
        return bytes_ / (1e9 * self.device.memory_gb_s * self.constants.memory)

    def fused_attention(self, pairs: float, heads: float, size: float) -> tuple[float, float]:
        """Seconds of a forward and a backward pass over so many (query, key) pairs a head.

        The backward pass makes scores again: five products for two.
        """
        padded = max(math.ceil(size / 64) * 64, 64)
        share = self.constants.fused * padded / (padded + 32)
        forward = 4.0 * pairs * heads * padded / (self.peak * share)
        return forward, 2.5 * forward

    def written_attention(self, pairs: float, heads: float, size: float) -> tuple[float, float]:
        """Seconds of a forward and a backward pass where scores are written to memory.

        A causal softmax reads half of them; dropout has a mask of a byte an element.
        """
        share = self.constants.batched * alignment(size) * size / (size + 64.0)
        products = 4.0 * pairs * heads * size / (self.peak * share)
        scores = self.moved(self.width * pairs * heads)
        return products + 6.0 * scores, 2.0 * products + 8.5 * scores


def alignment(size: float) -> float:
    """The share of its speed that a product keeps whose dimension is no multiple of 128 bytes."""
    if size % ALIGNED == 0:
        return 1.0
    if size % (ALIGNED // 2) == 0:
        return 0.97
    if size % VECTOR == 0:
        return 0.92
    return OFF_TENSOR_CORES
