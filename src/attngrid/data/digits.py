"""scikit-learn's 1,797 scans of digits, 8×8, enlarged to 16×16."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from attngrid.core.errors import DataError
from attngrid.data.images import Images


def digits(folder: Path) -> tuple[Images, Images]:
    """The digits, enlarged bilinearly; every fifth scan of each digit is in the test split."""
    # reads scikit-learn's file directly, because importing the package takes longer
    package = find_spec("sklearn")
    if package is None or not package.submodule_search_locations:
        raise DataError('the digits need scikit-learn: pip install "attngrid[train]"')
    file = Path(package.submodule_search_locations[0]) / "datasets/data/digits.csv.gz"
    table = np.loadtxt(file, delimiter=",", dtype=np.int64)
    scans, labels = table[:, :-1].reshape(-1, 1, 8, 8), table[:, -1].copy()
    rank = np.zeros_like(labels)  # position of a scan among those of its digit
    for digit in range(10):
        rank[labels == digit] = np.arange((labels == digit).sum())
    small = torch.from_numpy(scans.astype(np.float32))
    large = torch.nn.functional.interpolate(small, size=16, mode="bilinear", align_corners=False)
    pixels = (large * (255 / 16)).round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
    whole = Images(pixels, torch.from_numpy(labels))
    held_out = torch.from_numpy(rank % 5 == 4)
    return whole.only(~held_out), whole.only(held_out)
