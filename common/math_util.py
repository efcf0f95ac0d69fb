"""Statistics that the training log reports.

Source: baselines/common/math_util.py @ ea25b9e

Differs:
    - `explained_variance` raises `ValueError` where baselines asserts, and for unequal lengths too,
      which NumPy would broadcast or refuse with a message of its own.
    - What ppo1 never calls is left out (`discount` needs scipy).
"""

import numpy as np


def explained_variance(ypred: np.ndarray, y: np.ndarray) -> float:
    """Return the share of the variance of `y` that `ypred` explains: 1 - Var[y - ypred] / Var[y].

    1 is a perfect prediction, 0 no better than a constant, below 0 worse than a constant. A
    constant error costs nothing: only the variance of the error counts.

    The variances and their ratio have the arrays' dtype, the subtraction from 1 is in float64: so
    it was under NumPy 1, with which baselines ran, and float32 arrays give its number to the last
    bit (NumPy 2 would keep the subtraction in float32 too).

    Args:
        ypred: (T,), the predictions.
        y: (T,), what came true.

    Returns:
        The explained variance; NaN if Var[y] is 0.

    Raises:
        ValueError: an array is not one-dimensional, or the lengths differ.
    """
    ypred, y = np.asarray(ypred), np.asarray(y)
    if y.ndim != 1 or ypred.shape != y.shape:
        raise ValueError(
            "explained_variance takes two 1-d arrays of one length, "
            f"got shapes {ypred.shape} and {y.shape}"
        )
    var_y = np.var(y)
    return float("nan") if var_y == 0 else 1 - float(np.var(y - ypred) / var_y)
