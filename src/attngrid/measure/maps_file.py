"""Read and write a study's attention maps, ``results/<study>/maps.npz``, without torch."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from attngrid.core.errors import RecordError
from attngrid.core.files import write_atomically
from attngrid.study.cell import Cell
from attngrid.study.schema import Study


@dataclass(frozen=True)
class CellMaps:
    """Maps of one trained network for K images: Grad-CAM of the true class on the last stage.

    ``own_KHW`` is the spatial map of the attention module named ``site``; None if there is none.
    """

    labels: list[int]
    predicted: list[int]
    grad_cam_KHW: NDArray[np.float32] = field(repr=False)
    own_KHW: NDArray[np.float32] | None = field(default=None, repr=False)
    site: str | None = None


@dataclass(frozen=True, repr=False)
class Maps:
    """A study's attention maps: uint8 images K×H×W×3 by dataset, and maps by cell id."""

    images: dict[str, NDArray[np.uint8]]
    cells: dict[str, CellMaps]

    def __repr__(self) -> str:
        return f"Maps({len(self.cells)} cells, images of {', '.join(self.images) or 'no dataset'})"


def pictured(study: Study) -> list[Cell]:
    """The cells whose maps a study shows: the first seed of each model and condition."""
    first: dict[tuple[str, str, str], Cell] = {}
    for cell in study.cells:
        first.setdefault((cell.condition, cell.backbone, cell.attention), cell)
    return list(first.values())


def with_weights(study: Study) -> list[Cell]:
    """The ``pictured`` cells with a record and weights, each training once."""
    cells = {cell.id: cell for cell in pictured(study)}
    return [c for c in cells.values() if c.record.is_file() and c.weights.is_file()]


def write_maps(file: Path, maps: Maps) -> None:
    """Write maps as arrays and one JSON string, atomically; equal maps give equal bytes."""
    arrays: dict[str, NDArray[np.generic]] = {
        f"images/{dataset}": images for dataset, images in maps.images.items()
    }
    cells = {}
    for name, cell in maps.cells.items():
        arrays[f"grad_cam/{name}"] = cell.grad_cam_KHW
        if cell.own_KHW is not None:
            arrays[f"own/{name}"] = cell.own_KHW
        cells[name] = {"labels": cell.labels, "predicted": cell.predicted, "site": cell.site}
    arrays["cells"] = np.array(json.dumps(cells))
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_atomically(file, buffer.getvalue())


def read_maps(file: Path) -> Maps:
    """Read maps, without unpickling anything.

    Raises:
        RecordError: ``write_maps`` did not write this file, or it is damaged.
    """
    try:
        with np.load(file, allow_pickle=False) as stored:
            arrays = dict(stored)
        cells = {
            name: CellMaps(
                grad_cam_KHW=arrays[f"grad_cam/{name}"], own_KHW=arrays.get(f"own/{name}"), **fields
            )
            for name, fields in json.loads(str(arrays["cells"])).items()
        }
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise RecordError(
            f"{file}: cannot be read: {error}; remove it; `attngrid visualize` makes it again "
            "from the kept weights"
        ) from None
    kind = "images/"
    images = {name.removeprefix(kind): arrays[name] for name in arrays if name.startswith(kind)}
    return Maps(images, cells)
