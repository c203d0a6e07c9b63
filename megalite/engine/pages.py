"""Huge pages for memory that is read whole again and again, as a model's weights on a CPU.

A token of one answer reads each weight once: what it takes is the way to memory, and of small pages
each one's place must be looked up too, on a virtual machine in two tables.
"""

import ctypes
import mmap
from collections.abc import Iterable

from torch import Tensor

ADVICE = getattr(mmap, "MADV_HUGEPAGE", None)  # of Linux


def prefer_huge_pages(tensors: Iterable[Tensor]) -> None:
    """Ask for huge pages for memory of a CPU that is not written yet; a kernel may have none.

    Neighbours share a page: those that are smaller than one are asked for too.
    """
    if ADVICE is None:
        return
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    for tensor in tensors:
        if tensor.device.type != "cpu" or tensor.nbytes < mmap.PAGESIZE:
            continue
        first = tensor.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
        size = tensor.data_ptr() + tensor.nbytes - first
        advise(first, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE, ADVICE)
