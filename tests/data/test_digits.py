"""The digits are equal to scikit-learn's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from attngrid.data.digits import digits


def test_the_digits_equal_scikit_learns() -> None:
    bunch = load_digits()
    for split in digits(Path("unused")):
        pixels_NHW = split.pixels_NCHW[:, 0].float().numpy()
        for digit in range(10):
            of_digit = bunch.images[bunch.target == digit]
            ours = pixels_NHW[split.labels_N.numpy() == digit]
            held_out = np.arange(len(of_digit)) % 5 == 4
            expected = of_digit[held_out == (len(split) < 500)]
            assert len(ours) == len(expected)
            # bilinear enlargement by two without aligned corners keeps the corner pixels
            for y, x in ((0, 0), (0, 7), (7, 0), (7, 7)):
                corner = ours[:, 15 * (y > 0), 15 * (x > 0)]
                np.testing.assert_allclose(corner, (expected[:, y, x] * 255 / 16).round())
