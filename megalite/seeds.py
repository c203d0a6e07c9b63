"""Whole numbers mixed into seeds: what law 6 of docs/design.md draws from; needs no library."""

import hashlib

_MASK64 = 0xFFFFFFFFFFFFFFFF


def splitmix64(value: int) -> int:
    """Mix a 64-bit integer (Steele, Lea & Flood 2014); a bijection of [0, 2^64)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK64
    return value ^ (value >> 31)


def fold(seed: int, *values: int) -> int:
    """Mix integers such as step, layer and site into a seed; the result is in [0, 2^63)."""
    state = seed & _MASK64
    for value in values:
        state = splitmix64(state ^ splitmix64(value & _MASK64))
    return state & (_MASK64 >> 1)


def hash64(name: str) -> int:
    """A 63-bit hash of a name, the same in every process and on every machine."""
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") & (_MASK64 >> 1)
