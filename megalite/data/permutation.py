"""The order of samples: a permutation that is computed, never stored.

A Feistel network permutes [0, 4^k); walking its cycle until the value is below n permutes [0, n).

Source: Black & Rogaway 2002, "Ciphers with arbitrary finite domains", the cycle-walking cipher.
"""

from megalite.seeds import fold, splitmix64

ROUNDS = 6


def permute(index: int, size: int, seed: int, epoch: int) -> int:
    """Where sample ``index`` of an epoch is read from.

    Args:
        index: in [0, size).
        size: samples of an epoch.
        seed: of the run.
        epoch: its number; each has its own order.

    Returns:
        A number in [0, size); different for different ``index``.
    """
    half = max(1, -(-(size - 1).bit_length() // 2))
    mask = (1 << half) - 1
    keys = [fold(seed, epoch, number) for number in range(ROUNDS)]
    value = index
    while True:
        left, right = value >> half, value & mask
        for key in keys:
            left, right = right, left ^ (splitmix64(right ^ key) & mask)
        value = (left << half) | right
        if value < size:
            return value


def sample_at(place: int, size: int, seed: int) -> int:
    """The sample at a place of the run's endless order: epoch after epoch, each permuted anew.

    Numbers go on beyond an epoch: sample i of epoch e is e * size + i.
    """
    epoch, index = divmod(place, size)
    return epoch * size + permute(index, size, seed, epoch)
