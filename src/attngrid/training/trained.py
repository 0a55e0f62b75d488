"""A trained network with what it takes to use it: the input transform and the class names."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from attngrid.core.errors import DataError, RecordError
from attngrid.core.files import write_atomically
from attngrid.data.decoding import open_image, to_rgb
from attngrid.data.images import Batches, Images, normalize
from attngrid.data.registry import find_dataset
from attngrid.data.transforms import size_in_memory
from attngrid.records.record import read_cell
from attngrid.study.cell import Cell
from attngrid.training.weights import create_network, read_classes, weights_of


class TrainedModel:
    """The network of a record, in evaluation mode, on the CPU.

    Attributes:
        model: maps N×3×H×W float32 images, as ``transform`` makes them, to N×classes logits.
        classes: the names of the classes, in the order of the logits.
        cell: the configuration that was trained.
    """

    def __init__(self, cell: Cell, weights: Path, mean: list[float], std: list[float]) -> None:
        self.cell = cell
        self.model: nn.Module = create_network(cell, weights).eval()
        self.classes: list[str] = read_classes(weights)
        self.mean_C: Tensor = torch.tensor(mean)
        self.std_C: Tensor = torch.tensor(std)

    def __repr__(self) -> str:
        cell, count = self.cell, len(self.classes)
        return f"{type(self).__name__}({cell.label}: {cell.condition}; {count} classes)"

    def transform(self, image: Image.Image | np.ndarray | str | os.PathLike[str]) -> Tensor:
        """Make the network's input, 1×3×H×W, from an image as the training's test images.

        Args:
            image: an image file, a PIL image, or an array of 8-bit pixels, H×W×3 or H×W.

        Raises:
            DataError: no such file, no image, or pixels whose range is not known.
        """
        if isinstance(image, np.ndarray) and image.dtype != np.uint8:
            raise DataError(f"image: found an array of {image.dtype}; needs uint8, from 0 to 255")
        picture = _open(image)
        recipe, dataset = self.cell.recipe, find_dataset(self.cell.dataset)
        if dataset.target is None:
            from attngrid.data.stream import transform_test_image

            pixels_CHW = transform_test_image(picture, recipe.test_transforms)
            return normalize(pixels_CHW[None], self.mean_C, self.std_C)
        side = dataset.stored_size or dataset.input_size
        if picture.size != (side, side):
            picture = picture.resize((side, side), Image.Resampling.BILINEAR)
        pixels_HWC = torch.from_numpy(np.array(picture))
        images = Images(pixels_HWC.permute(2, 0, 1)[None], torch.zeros(1, dtype=torch.int64))
        size = size_in_memory(dataset, recipe.test_transforms, self.cell.options.input_size)
        images = images.averaged(size)
        ((x_NCHW, _),) = Batches(images, 1, self.mean_C, self.std_C, recipe.test_transforms)
        return x_NCHW

    def predict(
        self, image: Image.Image | np.ndarray | str | os.PathLike[str], k: int = 5
    ) -> list[tuple[str, float]]:
        """The ``k`` most probable classes of an image, each with its probability."""
        with torch.inference_mode():
            probabilities = self.model(self.transform(image)).softmax(1)[0]
        values, places = probabilities.topk(min(k, len(self.classes)))
        return [
            (self.classes[place], value)
            for place, value in zip(places.tolist(), values.tolist(), strict=True)
        ]

    def export(self, file: Path) -> None:
        """Write a program that ``torch.export.load(file).module()`` runs without attngrid.

        The program maps uint8 images N×3×H×W of the network's input size to
        N×classes logits: it normalises them itself. Its extra file ``classes.json`` is the list of
        the classes.
        """
        size = self.cell.input_size
        pixels_NCHW = torch.zeros(2, 3, size, size, dtype=torch.uint8)
        program = torch.export.export(
            _FromPixels(self.model, self.mean_C, self.std_C).eval(),
            (pixels_NCHW,),
            dynamic_shapes={"pixels_NCHW": {0: torch.export.Dim("N", min=1)}},
        )
        stream = io.BytesIO()
        torch.export.save(program, stream, extra_files={"classes.json": json.dumps(self.classes)})
        write_atomically(file, stream.getvalue())


def _open(image: Image.Image | np.ndarray | str | os.PathLike[str]) -> Image.Image:
    """The image as 8-bit RGB."""
    if isinstance(image, np.ndarray):
        return Image.fromarray(image).convert("RGB")
    try:
        return to_rgb(image if isinstance(image, Image.Image) else open_image(Path(image)))
    except (OSError, ValueError) as error:
        raise DataError(f"{image}: {error}") from error


class _FromPixels(nn.Module):
    """A network after the normalisation of its images."""

    mean_C: Tensor
    std_C: Tensor

    def __init__(self, network: nn.Module, mean_C: Tensor, std_C: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean_C", mean_C)
        self.register_buffer("std_C", std_C)

    def forward(self, pixels_NCHW: Tensor) -> Tensor:
        logits_NK: Tensor = self.network(normalize(pixels_NCHW, self.mean_C, self.std_C))
        return logits_NK


def load_model(record: str | os.PathLike[str]) -> TrainedModel:
    """Load the trained network of a record whose weights were kept.

    Args:
        record: its file, such as ``results/demo/records/....json``.

    Raises:
        RecordError: no record, no kept weights, or a record of an older version, which does not
            say how its images were normalised.

    Examples:
        >>> trained = load_model("results/demo/records/….json")  # doctest: +SKIP
        >>> trained  # doctest: +SKIP
        TrainedModel(ResNet-18 + SE, seed 0: Digits, 16×16, …; 10 classes)
        >>> trained.predict("seven.png", k=2)  # doctest: +SKIP
        [('7', 0.98), ('9', 0.01)]
    """
    file = Path(record)
    cell, content = read_cell(file)
    normalisation: dict[str, Any] | None = content.run.get("normalisation")
    if normalisation is None:
        raise RecordError(
            f"{file}: run.normalisation is missing: an older version trained this cell; train it "
            "again, or use attngrid.create_model(..., pretrained=...) with a normalisation of yours"
        )
    return TrainedModel(cell, weights_of(file), **normalisation)
