"""Text for the terminal: rows of aligned columns, and colour.

Source: baselines/common/console_util.py @ ea25b9e

Differs:
    - Torch scalars, and NumPy scalars of every width, print like Python's own.
    - An array with dimensions raises `ValueError` where baselines asserts, and so
      does an unknown colour.
    - `timed`, `SimpleAverage` and the other helpers that ppo1 never calls are left out.
"""

from collections.abc import Iterable
from typing import Any

# The foreground code of each colour in an ANSI "select graphic rendition" sequence.
color2num = {
    "gray": 30,
    "red": 31,
    "green": 32,
    "yellow": 33,
    "blue": 34,
    "magenta": 35,
    "cyan": 36,
    "white": 37,
    "crimson": 38,
}


def fmt_row(width: int, row: Iterable[Any], header: bool = False) -> str:
    """Return the items of `row`, each at least `width` wide, joined by " | ".

    Args:
        width: least number of characters an item takes; a longer item is not cut.
        row: numbers (Python, NumPy or torch scalars) and anything else that has a `str`.
        header: underline the row with dashes on a second line.
    """
    line = " | ".join(fmt_item(x, width) for x in row)
    return f"{line}\n{'-' * len(line)}" if header else line


def fmt_item(x: Any, l: int) -> str:  # noqa: E741 - the name of baselines' parameter
    """Return one item as text, right-aligned to at least `l` characters.

    A float has five decimals, or two and an exponent where its size is below 1e-4 (zero apart)
    or above 1e4; everything else is its `str`.

    Raises:
        ValueError: `x` is an array or a tensor with one or more dimensions.
    """
    if hasattr(x, "ndim") and hasattr(x, "item"):
        if x.ndim != 0:
            raise ValueError(f"a row takes scalars, got an array of shape {tuple(x.shape)}")
        x = x.item()
    if not isinstance(x, float):
        return str(x).rjust(l)
    size = abs(x)
    plain = size == 0 or not (size < 1e-4 or size > 1e4)  # so written, NaN counts as plain
    return (f"{x:7.5f}" if plain else f"{x:7.2e}").rjust(l)


def colorize(string: str, color: str, bold: bool = False, highlight: bool = False) -> str:
    """Return `string` between the ANSI codes that colour it and those that end the colour.

    Args:
        string: the text.
        color: a key of `color2num`.
        bold: print it bold.
        highlight: colour the background instead of the letters.

    Raises:
        ValueError: `color` is unknown.
    """
    if color not in color2num:
        raise ValueError(f"unknown color {color!r}: choose one of {', '.join(color2num)}")
    codes = str(color2num[color] + (10 if highlight else 0)) + (";1" if bold else "")
    return f"\x1b[{codes}m{string}\x1b[0m"
