"""How values are stored: float16 with a scale per recording, so that physical units come back to fp16's precision.

Shape letters: T time samples, C channels.
"""

import math

import numpy as np

STORED_DTYPE = np.dtype("<f2")
# The largest good value is stored as 5,000..10,000: values down to a billionth of it keep fp16's 11 bits, and bad
# channels have room above.
_TARGET_PEAK = 1e4
_FP16_MAX = 65504.0


def encode(x_TC: np.ndarray, good_C: np.ndarray) -> tuple[np.ndarray, float]:
    """Store physical values as little-endian float16 ``(T, C)``; physical = stored * scale.

    The scale is a power of two, so that scaling rounds nothing; it is set by the good channels, and what bad ones
    have beyond the range of float16 is clipped.
    """
    good_TC = x_TC if good_C.all() else x_TC[:, good_C]
    peak = max(float(good_TC.max(initial=0.0)), -float(good_TC.min(initial=0.0)))
    scale = 2.0 ** math.ceil(math.log2(peak / _TARGET_PEAK)) if peak > 0 else 1.0
    return np.clip(x_TC / np.float32(scale), -_FP16_MAX, _FP16_MAX).astype(STORED_DTYPE), scale
