"""The images that a prompt shows: where each one is, and how the text of the prompt names it.

In the text an image is the mark ``<image:NAME>``, so that whatever compares prompts (splits, leaks,
copies) tells two pictures apart. Where it is stands in ``meta["images"]``, as plain values: a file
with its size and time, or its bytes in base64. Pixels are read when a batch is computed.
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignlab.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

KEY = "images"  # of a group's meta
PLAIN_MARK = "<image>"  # how rows write the place of an image

# name, at (field of the row); path and stamp (bytes, modified in ns), or base64
Reference = Mapping[str, Any]


def images_of(meta: Mapping[str, Any]) -> tuple[Reference, ...]:
    """Images of the group with this meta, in the order of their marks."""
    return tuple(meta.get(KEY) or ())


def mark(image: Reference) -> str:
    """How the text of a prompt names an image."""
    return f"<image:{image['name']}>"


def identity(image: Reference) -> str:
    """Text that changes when the image behind a reference does."""
    return f"{image['name']}:{image.get('stamp') or image.get('base64')}"


def stamp_of(path: Path) -> list[int]:
    """Size (bytes) and time of change (ns) of a file; raises OSError."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def opened(image: Reference) -> Image:
    """Read an image whole, upright, as RGB.

    Raises:
        DataError: Pillow is missing, or the image is gone, changed or broken; names its field.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise DataError("Rows with images need Pillow: pip install 'alignlab[vision]'.") from error
    what = f"'{image['at']}', the image {image['name']!r}"
    try:
        with Image.open(_source(image, what)) as file:
            return ImageOps.exif_transpose(file).convert("RGB")
    except FileNotFoundError as error:
        raise DataError(f"{what}: there is no file {image['path']}.") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{what}: cannot be read as an image ({error}). Replace it, or leave its rows out "
            "of the file."
        ) from error


def _source(image: Reference, what: str) -> io.BytesIO | str:
    if "base64" in image:
        try:
            return io.BytesIO(base64.b64decode(image["base64"], validate=True))
        except binascii.Error as error:
            raise DataError(f"{what}: is no base64 ({error}).") from error
    if stamp_of(Path(image["path"])) != list(image["stamp"]):
        raise DataError(
            f"{what}: {image['path']} has changed since the rows were read. Run the same again: "
            "what it changes is prepared anew."
        )
    return str(image["path"])
