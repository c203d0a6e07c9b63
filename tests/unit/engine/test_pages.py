"""Memory of weights is asked to stand in huge pages."""

import mmap
from pathlib import Path

import pytest
import torch

from megalite.engine.pages import prefer_huge_pages

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
MIB = 2**20


def flags_at(address):
    """What the kernel notes of the memory there."""
    is_there = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, _, rest = line.partition("-")
        if not first.endswith(":") and rest and ":" not in first:
            is_there = int(first, 16) <= address < int(rest.split()[0], 16)
        elif is_there and line.startswith("VmFlags:"):
            return line.split()[1:]
    raise AssertionError("no memory has the address")


@pytest.mark.skipif(not SETTING.exists(), reason="this kernel has no transparent huge pages")
def test_neighbours_smaller_than_a_huge_page_are_asked_for_too():
    # A mapping each: torch.empty may be given memory for which an earlier test asked.
    plain, asked = (torch.frombuffer(mmap.mmap(-1, 64 * MIB), dtype=torch.uint8) for _ in range(2))
    parts = asked.split(MIB)
    prefer_huge_pages(parts)
    for part in parts:
        assert "hg" in flags_at(part.data_ptr())
        assert "hg" in flags_at(part.data_ptr() + part.nbytes - 1)
    assert "hg" not in flags_at(plain.data_ptr() + 32 * MIB)


def test_nothing_is_asked_for_what_is_tiny_or_nowhere():
    prefer_huge_pages([torch.empty(0), torch.empty(3), torch.empty(4, device="meta")])
