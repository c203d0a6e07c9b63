"""The emulated operations give what numpy gives; schedules decide only what they may."""

import ctypes

import numpy as np
import pytest


def pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def aligned(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """An array at a multiple of 256 bytes, as a GPU allocates."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(size + 256, np.uint8)
    skip = -raw.ctypes.data % 256
    return raw[skip : skip + size].view(dtype).reshape(shape)


def as_bfloat16(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The bits of ``x`` cut to bfloat16 and its value as float32."""
    bits = (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return bits, (bits.astype(np.uint32) << 16).view(np.float32)


def product_sm80(simt, a: np.ndarray, b: np.ndarray, *, is_bfloat16: bool, seed: int) -> np.ndarray:
    """a [M, K] times b [N, K] transposed, both as the bits of 16-bit numbers."""
    inputs = []
    for x in (a, b):
        inputs.append(aligned(x.shape, np.uint16))
        inputs[-1][:] = x
    c = np.full((a.shape[0], b.shape[0]), np.nan, np.float32)
    sizes = (a.shape[0], b.shape[0], a.shape[1])
    found = simt.product_sm80(
        int(is_bfloat16), ctypes.c_uint64(seed), *map(pointer, [*inputs, c]), *sizes
    )
    assert found is None, found.decode()
    return c


@pytest.mark.parametrize("is_bfloat16", [False, True])
def test_product_through_cp_async_ldmatrix_and_m16n8k16_matches_numpy(simt, is_bfloat16):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((48, 96)), rng.standard_normal((32, 96))
    if is_bfloat16:
        (a_bits, a), (b_bits, b) = as_bfloat16(a), as_bfloat16(b)
    else:
        a, b = a.astype(np.float16), b.astype(np.float16)
        a_bits, b_bits = a.view(np.uint16), b.view(np.uint16)
    want = a.astype(np.float64) @ b.astype(np.float64).T
    results = [
        product_sm80(simt, a_bits, b_bits, is_bfloat16=is_bfloat16, seed=s) for s in range(10)
    ]
    np.testing.assert_allclose(results[0], want, atol=1e-5 * 96)
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


@pytest.mark.parametrize("layouts", range(4))
def test_m8n8k4_matches_numpy_in_each_layout_and_quadpair(simt, layouts):
    rng = np.random.default_rng(layouts)
    a, b = (
        rng.standard_normal((8, 4)).astype(np.float16),
        rng.standard_normal((4, 8)).astype(np.float16),
    )
    c = np.full((4, 8, 8), np.nan, np.float32)
    assert simt.product_sm70(layouts, pointer(a), pointer(b), pointer(c)) is None
    for pair in range(4):
        np.testing.assert_allclose(c[pair], a.astype(np.float64) @ b.astype(np.float64), atol=1e-5)


def test_only_the_sum_by_atomics_depends_on_the_schedule(simt):
    x = np.random.default_rng(0).standard_normal(512).astype(np.float32)
    sums = np.zeros((40, 2), np.float32)
    for seed in range(40):
        assert simt.sums(ctypes.c_uint64(seed), pointer(x), pointer(sums[seed])) is None
    assert len(np.unique(sums[:, 0])) > 1
    assert len(np.unique(sums[:, 1])) == 1
    np.testing.assert_allclose(sums, x.astype(np.float64).sum(), atol=1e-4)


def read_counters(simt, kernel: str) -> dict[str, int]:
    values = np.zeros(12, np.uint64)
    simt.counters(kernel.encode(), pointer(values))
    names = (
        "launches blocks barriers global_read global_write shared_read shared_write m16n8k16 m8n8k4"
    )
    names += " ldmatrix ldmatrix_conflicts shared_conflicts"
    return dict(zip(names.split(), map(int, values), strict=True))


def test_counters_are_those_of_the_product(simt):
    simt.reset_counters(0)
    M, N, K = 32, 48, 64
    product_sm80(
        simt, np.zeros((M, K), np.uint16), np.zeros((N, K), np.uint16), is_bfloat16=False, seed=0
    )
    got = read_counters(simt, "sm80")
    tiles = (M // 16) * (N // 16)
    assert got["launches"] == 1
    assert got["blocks"] == tiles
    assert got["m16n8k16"] == tiles * 2 * K // 16
    assert got["ldmatrix"] == tiles * 2 * K // 16
    assert got["global_read"] == tiles * 2 * 16 * K * 2
    assert got["global_write"] == M * N * 4
    assert got["shared_write"] == got["global_read"] == got["shared_read"]
    assert got["barriers"] == got["m8n8k4"] == 0


@pytest.mark.parametrize(
    ("stride", "ldmatrix", "plain"), [(64, 28, 31), (8, 0, 3), (40, 0, 3), (24, 0, 3)]
)
def test_bank_conflicts_are_counted(simt, stride, ldmatrix, plain):
    """64 halves = 128 bytes: rows share banks; with an odd number of 16-byte pieces they do not."""
    simt.reset_counters(1)
    y = np.zeros(32, np.float32)
    found = simt.banks(stride, pointer(y))
    assert found is None, found.decode()
    simt.reset_counters.restype = None
    got = read_counters(simt, "banks")
    simt.reset_counters(0)
    assert got["ldmatrix_conflicts"] == ldmatrix
    assert got["shared_conflicts"] == plain


def test_half_converts_exactly_to_float_and_to_nearest_even_from_it(simt):
    every = np.arange(1 << 16, dtype=np.uint16)
    got = np.array([simt.convert_half(int(h)) for h in every[::7]], np.float32)
    np.testing.assert_array_equal(got, every[::7].view(np.float16).astype(np.float32))
    rng = np.random.default_rng(0)
    x = (rng.standard_normal(4000) * 2.0 ** rng.integers(-26, 18, 4000)).astype(np.float32)
    got = np.array([simt.convert_to(0, float(v)) for v in x], np.uint16)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(got, x.astype(np.float16).view(np.uint16))


def test_bfloat16_rounds_to_nearest_even_like_torch(simt):
    torch = pytest.importorskip("torch")
    x = torch.randn(4000, generator=torch.Generator().manual_seed(0))
    got = np.array([simt.convert_to(1, float(v)) for v in x], np.uint16)
    np.testing.assert_array_equal(got, x.bfloat16().view(torch.uint16).numpy())
