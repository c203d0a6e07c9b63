"""Kernels wrong in one way each are caught; their correct twins pass under all schedules."""

import ctypes
import re

import numpy as np
import pytest

FOUND = {
    "missing_syncthreads": "race|uninitialised",
    "missing_syncwarp": "without syncwarp or syncthreads between|uninitialised",
    "shuffle_is_no_memory_barrier": "without syncwarp or syncthreads between|uninitialised",
    "write_after_read": "race",
    "write_after_write": "race",
    "atomic_and_plain": "race|uninitialised",
    "copy_without_wait": "before the wait for the cp.async",
    "copy_waited_one_group_short": "before the wait for the cp.async",
    "copy_without_commit": "before the wait for the cp.async",
    "copy_without_barrier": "race|before the wait for the cp.async|uninitialised",
    "copy_over_a_buffer_in_use": "race",
    "global_read_out_of_bounds": "global access out of bounds: 1 element\\(s\\) at 512 of 512",
    "global_write_out_of_bounds": "global access out of bounds: 1 element\\(s\\) at 128 of 128",
    "global_misaligned": "misaligned global access: 16 bytes",
    "shared_out_of_bounds": "shared access out of bounds: 1 element\\(s\\) at 128 of a view of 128",
    "shared_view_beyond_the_launch": "shared view of bytes \\[0, 4100\\) of the 4096",
    "shared_misaligned": "misaligned shared access: 16 bytes",
    "uninitialised": "uninitialised shared memory is read at byte",
    "barrier_in_a_branch": "divergent barrier",
    "two_barriers_that_meet": "divergent barrier",
    "barrier_after_an_exit": "divergent barrier",
    "mask_without_the_caller": "mask 0xffff0000 lacks the calling lane 3",
    "mask_names_absent_lanes": "names lanes that have ended|waits for lanes",
    "mask_differs_between_lanes": "mask 0x",
    "shuffle_from_outside_the_mask": "reads lane (\\d+), which mask 0x",
    "shuffle_against_a_barrier": "wait at the syncthreads|divergent barrier",
    "ldmatrix_misaligned": "misaligned shared access",
    "ldmatrix_without_syncwarp": "race|uninitialised",
    "mma_by_a_part_of_the_warp": "mma_m16n8k16",
}
NAMES = list(FOUND)
SEEDS = range(20)


def run(simt: ctypes.CDLL, name: str, is_broken: bool, seed: int) -> tuple[str | None, np.ndarray]:
    """The message of the emulator, None if it found nothing, and the result y [128]."""
    storage = np.zeros(512 + 4, np.float32)
    skip = (-storage.ctypes.data // 4) % 4  # a GPU's allocations are aligned to 16 bytes and more
    x = storage[skip : skip + 512]
    x[:] = np.arange(512) % 61
    y = np.full(128, np.nan, np.float32)
    index = case_names(simt).index(name)
    pointers = [ctypes.c_void_p(v.ctypes.data) for v in (x, y)]
    found = simt.run_case(index, int(is_broken), ctypes.c_uint64(seed), *pointers)
    return (found.decode() if found else None), y


def case_names(simt: ctypes.CDLL) -> list[str]:
    names = []
    while (name := simt.case_name(len(names))) is not None:
        names.append(name.decode())
    return names


def test_every_case_has_its_message(simt):
    assert case_names(simt) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_broken_kernel_is_caught_under_every_schedule_with_kernel_place_block_and_thread(
    simt, name
):
    for seed in SEEDS:
        message, _ = run(simt, name, True, seed)
        assert message is not None, f"{name} passed under seed {seed}"
        assert re.search(FOUND[name], message), message
        named = rf"simt: kernel {name}, broken\.h:\d+, block \(\d+, 0, 0\), thread \d+: "
        assert re.match(named, message), message


@pytest.mark.parametrize("name", NAMES)
def test_correct_twin_passes_with_equal_bits_under_every_schedule(simt, name):
    results = []
    for seed in SEEDS:
        message, y = run(simt, name, False, seed)
        assert message is None, message
        results.append(y)
    for y in results[1:]:
        np.testing.assert_array_equal(y, results[0])


def test_the_machine_still_works_after_an_error(simt):
    assert run(simt, "missing_syncthreads", True, 0)[0] is not None
    message, y = run(simt, "missing_syncthreads", False, 1)
    assert message is None
    np.testing.assert_array_equal(y, np.roll(np.arange(128) % 61, -32))


@pytest.mark.parametrize(
    ("launch", "found"),
    [
        ((1025, 0, 1), "threads of a block must be 1 to 1024, not 1025"),
        ((32, 163 * 1024 + 1, 1), "bytes of shared memory must be 0 to 166912, not 166913"),
        ((32, 0, 65536), "grid y must be 1 to 65535, not 65536"),
        ((32, 0, 0), "grid y must be 1 to 65535, not 0"),
    ],
)
def test_a_launch_that_no_gpu_would_take_is_refused(simt, launch, found):
    assert simt.launch_of(32, 0, 2) is None
    assert found in simt.launch_of(*launch).decode()
