"""The index in C++ (csrc/index): where documents lie, how datasets blend, what is packed."""

from megalite.errors import KernelUnavailable

try:
    from megalite._index import Blend, DocumentIndex, first_fit
except ImportError as error:
    raise KernelUnavailable(
        f"megalite._index: must be built, came {error}; run `make install`, or "
        "`python setup.py build_ext --inplace`"
    ) from None

__all__ = ["Blend", "DocumentIndex", "first_fit"]
