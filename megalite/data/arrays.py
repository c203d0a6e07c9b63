"""Types of the numpy arrays that documents and samples are made of."""

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]
Int32 = NDArray[np.int32]
Float32 = NDArray[np.float32]
Bool = NDArray[np.bool_]
StoredTokens = NDArray[np.number]  # of whichever type a token store has
