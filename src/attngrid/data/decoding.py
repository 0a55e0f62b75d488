"""Image files: which may be opened, and as what."""

from __future__ import annotations

import stat
from pathlib import Path

from PIL import Image

# PIL knows more, and gives an EPS file to Ghostscript, whatever the ending of its name.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")


def open_image(file: str | Path) -> Image.Image:
    """Open an image file; it is not decoded yet.

    Raises:
        OSError: the file is missing, is no regular file, or has none of the ``FORMATS``.
    """
    require_regular(file)
    return Image.open(file, formats=FORMATS)


def require_regular(file: str | Path) -> None:
    """Refuse, for example, a named pipe, which a reader would wait for.

    Raises:
        OSError: the file is missing or is no regular file.
    """
    if not stat.S_ISREG(Path(file).stat().st_mode):
        raise OSError("is no regular file")


def to_rgb(image: Image.Image) -> Image.Image:
    """An image file as 8-bit RGB, which may not be decoded yet; raises as ``require_8_bits``."""
    require_8_bits(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def require_8_bits(image: Image.Image) -> None:
    """Refuse grey values of 16 or 32 bits, which PIL would clip at 255.

    Their white is not known: 12 bits are often stored in 16.

    Raises:
        ValueError: says the mode of the image and what to do.
    """
    if image.mode[0] in "IF":  # PIL's modes I, I;16, I;16B and F
        raise ValueError(
            f"found grey values of mode {image.mode}, 16 or 32 bits; needs 8: scale them to 0..255"
        )
