"""Where documents lie, how datasets blend, what is packed: C++ where it is built."""

from megalite.errors import KernelUnavailable
from megalite.extensions import extension

if extension("_index") is None:
    from megalite.data.plain_index import Blend, DocumentIndex, first_fit
else:
    try:
        from megalite._index import (  # type: ignore[assignment]  # the same, in C++
            Blend,
            DocumentIndex,
            first_fit,
        )
    except ImportError as error:
        raise KernelUnavailable(
            f"megalite._index: must be built for this Python, came {error}; run `make install`, "
            "or `python setup.py build_ext --inplace`"
        ) from None

__all__ = ["Blend", "DocumentIndex", "first_fit"]
