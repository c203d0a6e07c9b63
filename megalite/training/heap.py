"""How the C library holds memory of tensors on a CPU."""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_APART_BYTES = 1 << 30  # larger blocks still come from the system and go back to it


def keep_freed_memory() -> None:
    """Keep freed memory for the next tensors of this process.

    A step frees and takes the same memory as the one before. By default glibc gives most of it
    back, and every page then has to be faulted in and cleared again. Other C libraries stay as they
    are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, -1)  # never
        mallopt(_M_MMAP_THRESHOLD, _APART_BYTES)
