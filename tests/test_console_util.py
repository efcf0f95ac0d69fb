"""Rows of the console, character by character."""

import numpy as np
import pytest
import torch

from common.console_util import colorize, fmt_item, fmt_row


@pytest.mark.parametrize(
    "item, expected",
    [
        (1.5, "1.50000"),
        (-1.5, "-1.50000"),
        (0.0, "0.00000"),
        (-0.00123456, "-0.00123"),
        (1e-4, "0.00010"),  # the limits themselves have five decimals
        (1e4, "10000.00000"),
        (9.99e-5, "9.99e-05"),
        (-12345.678, "-1.23e+04"),
        (float("nan"), "    nan"),
        (float("inf"), "    inf"),
        (3, "3"),
        (123456789, "123456789"),
        (True, "True"),
        (None, "None"),
        ("pol_surr", "pol_surr"),
        (np.float32(0.25), "0.25000"),
        (np.float16(0.25), "0.25000"),
        (np.float64(0.25), "0.25000"),
        (np.array(0.25), "0.25000"),
        (np.int64(-4), "-4"),
        (torch.tensor(0.25), "0.25000"),
        (torch.tensor(0.25, requires_grad=True), "0.25000"),
        (torch.tensor(7), "7"),
    ],
)
def test_item(item, expected):
    assert fmt_item(item, 0) == expected
    assert fmt_item(item, 13) == " " * (13 - len(expected)) + expected


def test_long_item_is_not_cut():
    assert fmt_item(-12345.678, 4) == "-1.23e+04"


@pytest.mark.parametrize("item", [np.zeros(2), np.zeros((1, 1)), torch.zeros(3)])
def test_array_is_refused(item):
    with pytest.raises(ValueError, match=r"got an array of shape \("):
        fmt_item(item, 5)


def test_row():
    assert fmt_row(8, ["surr", 0.5, 3]) == "    surr |  0.50000 |        3"
    assert fmt_row(8, []) == ""


@pytest.mark.parametrize("as_array", [np.array, torch.tensor])
def test_row_of_an_array(as_array):
    """ppo1 prints a loss vector as it is, under the names of its parts."""
    losses = as_array([-0.0125, 0.0, 123456.0])
    assert fmt_row(13, losses) == "     -0.01250 |       0.00000 |      1.23e+05"
    assert fmt_row(13, ["surr", "entpen", "vf_loss"]) == (
        "         surr |        entpen |       vf_loss"
    )


def test_header():
    assert fmt_row(4, ["a", "b"], header=True) == "   a |    b\n" + "-" * 11


def test_colorize():
    assert colorize("hi", "red") == "\x1b[31mhi\x1b[0m"
    assert colorize("hi", "cyan", bold=True) == "\x1b[36;1mhi\x1b[0m"
    assert colorize("hi", "gray", highlight=True) == "\x1b[40mhi\x1b[0m"
    assert colorize("hi", "white", bold=True, highlight=True) == "\x1b[47;1mhi\x1b[0m"


def test_unknown_color():
    with pytest.raises(ValueError, match="unknown color 'mauve': choose one of gray, red"):
        colorize("hi", "mauve")
