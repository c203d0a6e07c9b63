"""Counter-based random numbers: a value depends on what it is for, never on where it is made.

Philox4x32-10 turns a 64-bit key and a 128-bit counter into four 32-bit words. The same function is
in ``csrc/philox.h``; both give the same bits.

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

_CPU = torch.device("cpu")
_Block = Callable[  # of a key: elements first to first + count, on a device
    [int, int, int, torch.device], Tensor
]
_MASK32 = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_BLOCK_COUNTERS = 1 << 16  # counters a pass: 512 KiB an int64 buffer, so a round stays in cache
_DEVICE_BLOCK_COUNTERS = 1 << 22  # of a GPU, which is full then; 32 MiB a buffer


def _multiply(multiplier: int, word: Tensor) -> tuple[Tensor, Tensor]:
    product = word * multiplier  # wraps modulo 2^64, which keeps both halves exact
    return (product >> 32) & _MASK32, product & _MASK32


def philox(key: int, c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor) -> tuple[Tensor, ...]:
    """Philox4x32-10 of one key and many counters.

    Args:
        key: 64-bit seed.
        c0: first counter word, int64 in [0, 2^32); the four broadcast against each other.
        c1: second counter word.
        c2: third counter word.
        c3: fourth counter word.

    Returns:
        Four int64 tensors of words in [0, 2^32).
    """
    k0, k1 = key & _MASK32, (key >> 32) & _MASK32
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(_MULTIPLIERS[0], c0)
        high1, low1 = _multiply(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _MASK32, (k1 + _WEYL[1]) & _MASK32
    return c0, c1, c2, c3


def keep_threshold(p: float) -> int:
    """The smallest word that is kept under dropout probability ``p``."""
    return int(p * 4294967296.0) & _MASK32


def attention_keep(
    seed: int, p: float, sample_ids: Tensor, heads: Tensor, queries: int, keys: int
) -> Tensor:
    """Which attention probabilities dropout keeps: bool [B, N, queries, keys].

    Args:
        seed: 64-bit key.
        p: probability of dropping.
        sample_ids: int64 [B].
        heads: int64 [N], global head numbers.
        queries: number of query rows.
        keys: number of keys.
    """
    device = sample_ids.device
    groups = torch.arange((keys + 3) // 4, device=device)
    rows = torch.arange(queries, device=device)[:, None]
    heads = heads.to(device)[:, None, None]
    samples = (sample_ids & _MASK32)[:, None, None, None]
    shape = (sample_ids.numel(), heads.numel(), queries, groups.numel())
    words = philox(seed, *(c.expand(shape) for c in (groups, rows, heads, samples)))
    return torch.stack(words, -1).flatten(-2)[..., :keys] >= keep_threshold(p)


def element_keep(
    seed: int, p: float, sample_ids: Tensor, positions: Tensor, features: Tensor
) -> Tensor:
    """Which elements of [B, S, D] dropout keeps, given global positions [S] and features [D]."""
    first = int(features[0]) // 4
    groups = torch.arange(first, int(features[-1]) // 4 + 1, device=features.device)
    samples = (sample_ids & _MASK32)[:, None, None]
    shape = (sample_ids.numel(), positions.numel(), groups.numel())
    zero = torch.zeros((), dtype=torch.int64, device=features.device)
    counters = (groups, positions[:, None], zero, samples)
    words = torch.stack(philox(seed, *(c.expand(shape) for c in counters)), -1).flatten(-2)
    return words[..., features - 4 * first] >= keep_threshold(p)


def _words(key: int, first: int, count: int, device: torch.device) -> Tensor:
    """The words of elements [first, first + count) of a parameter: int64 [count]."""
    counter = torch.arange(first // 4, (first + count + 3) // 4, device=device)
    zero = torch.zeros_like(counter)
    words = torch.stack(philox(key, counter & _MASK32, counter >> 32, zero, zero), -1)
    return words.flatten()


def _uniform_block(key: int, first: int, count: int, device: torch.device) -> Tensor:
    words = _words(key, first, count, device)[first % 4 : first % 4 + count]
    return (words.double() + 0.5) * 2.0**-32


def _normal_block(key: int, first: int, count: int, device: torch.device) -> Tensor:
    pairs = ((_words(key, first, count, device).double() + 0.5) * 2.0**-32).view(-1, 2)
    radius = torch.sqrt(-2.0 * torch.log(pairs[:, 0]))
    angle = (2.0 * math.pi) * pairs[:, 1]
    normal = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), -1).flatten()
    return normal[first % 4 : first % 4 + count]


def rounding_is_close(exact: Tensor) -> Tensor:
    """Where fp64 values that err by less than 2^-46 of themselves may round to fp32 otherwise."""
    return (exact * (1.0 - 2.0**-46)).float() != (exact * (1.0 + 2.0**-46)).float()


def _fill(block: _Block, key: int, first: int, out: Tensor) -> None:
    """Write elements first, first + 1, ... of a parameter into the flat tensor ``out``.

    Logarithms and cosines of a device err by a few units of fp64 and not by the same as a CPU's.
    Where that may show in fp32, about once in four million elements, the CPU makes the element.
    """
    is_cpu = out.device.type == "cpu"
    step = 4 * (_BLOCK_COUNTERS if is_cpu else _DEVICE_BLOCK_COUNTERS)
    for at in range(0, out.numel(), step):
        count = min(step, out.numel() - at)
        exact = block(key, first + at, count, out.device)
        out[at : at + count] = exact
        if is_cpu:
            continue
        for place in rounding_is_close(exact).nonzero()[:, 0].tolist():
            out[at + place] = float(block(key, first + at + place, 1, _CPU))


def _slice(
    block: _Block,
    key: int,
    shape: tuple[int, ...],
    dim: int,
    bounds: tuple[int, int],
    device: torch.device,
) -> Tensor:
    """Elements [bounds) of dimension ``dim`` of a whole parameter of ``shape``, fp32."""
    start, stop = bounds
    outer, inner = math.prod(shape[:dim]), math.prod(shape[dim + 1 :])
    run = (stop - start) * inner
    out = torch.empty(outer, run, device=device)
    for row in range(outer):
        _fill(block, key, (row * shape[dim] + start) * inner, out[row])
    return out.view(*shape[:dim], stop - start, *shape[dim + 1 :])


def initial_uniform(
    key: int,
    shape: tuple[int, ...],
    dim: int = 0,
    bounds: tuple[int, int] | None = None,
    device: torch.device = _CPU,
) -> Tensor:
    """Uniform (0, 1) initial values of a parameter, or of a slice of it.

    Args:
        key: ``fold(seed, hash64(name))``.
        shape: shape of the whole, unsharded parameter.
        dim: the dimension that is sliced.
        bounds: [start, stop) along ``dim``; None is the whole parameter.
        device: that makes and gets them.

    Returns:
        fp32 on ``device``; equal to the same slice of the whole parameter, bit for bit, on all
        devices.
    """
    return _initial(_uniform_block, key, shape, dim, bounds, device)


def initial_normal(
    key: int,
    shape: tuple[int, ...],
    dim: int = 0,
    bounds: tuple[int, int] | None = None,
    device: torch.device = _CPU,
) -> Tensor:
    """Standard normal initial values (Box-Muller on word pairs); see :func:`initial_uniform`."""
    return _initial(_normal_block, key, shape, dim, bounds, device)


def _initial(
    block: _Block,
    key: int,
    shape: tuple[int, ...],
    dim: int,
    bounds: tuple[int, int] | None,
    device: torch.device,
) -> Tensor:
    shape = tuple(shape) or (1,)
    bounds = bounds or (0, shape[dim])
    if dim == 0 or math.prod(shape[dim:]) >= 4 * _BLOCK_COUNTERS:
        return _slice(block, key, shape, dim, bounds, device)
    whole = _slice(block, key, shape, 0, (0, shape[0]), device)
    return whole.narrow(dim, bounds[0], bounds[1] - bounds[0]).contiguous()
