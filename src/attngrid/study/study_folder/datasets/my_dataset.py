"""An example of a dataset: gratings at twelve angles, in noise."""

from pathlib import Path

import numpy as np


class MyDataset:
    """2,048 training and 2,048 held-out images of 16×16, made from a fixed seed."""

    # literals, or arithmetic of literals, because attngrid reads them without running this file
    label = "gratings"
    num_classes = 12
    input_size = 16
    stem = "cifar"

    @staticmethod
    def load(folder: Path) -> list[tuple[np.ndarray, np.ndarray]]:
        """The training and the held-out split: uint8 images N×3×H×W and N labels from 0.

        Args:
            folder: the configuration's ``data.folder``, for datasets with files.
        """
        return [_gratings(2048, seed=0), _gratings(2048, seed=1)]


def _gratings(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels_N = np.arange(count) % MyDataset.num_classes
    angle_N = labels_N * np.pi / MyDataset.num_classes
    # one angle in ten is then closer to another class's: no network has less than some 10 % error
    angle_N11 = (angle_N + random.normal(0, 0.08, count))[:, None, None]
    phase_N11 = random.uniform(0, 2 * np.pi, (count, 1, 1))
    y_HW, x_HW = np.mgrid[: MyDataset.input_size, : MyDataset.input_size]
    along_NHW = np.cos(angle_N11) * x_HW + np.sin(angle_N11) * y_HW
    clean_NHW = np.sin(along_NHW * 2 * np.pi / 6 + phase_N11)
    images_N3HW = clean_NHW[:, None] + random.normal(0, 2, (count, 3, *x_HW.shape))
    return (128 + 30 * images_N3HW).clip(0, 255).astype(np.uint8), labels_N
