"""Images in the rows of any format: taken out of the row, and named in its texts by marks.

A row has ``images`` (or ``image``) and as many places for them in its prompt, ``<image>`` in a text
or ``{"type": "image"}`` among the parts of a message; or the parts bring the images themselves. An
image is a path, a data: URL, bytes, what `datasets` makes of its Image feature, or a PIL image.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignlab.errors import DataError
from alignlab.images import PLAIN_MARK, Reference, mark, stamp_of

FIELDS = ("images", "image")
_BRINGS = ("image", "image_url", "url", "path", "base64", "bytes", "source")  # of a part

Row = Mapping[str, Any]


def with_marks(
    row: Row, used: Collection[str], folder: Path | None
) -> tuple[dict[str, Any], tuple[Reference, ...]]:
    """Return the row without its images and with a mark in the place of each, and the images.

    Args:
        row: field -> value.
        used: fields that the row's format reads; every one that shows images starts with the first.
        folder: what paths are relative to; None where nothing but bytes can be had.

    Raises:
        DataError: a place without an image, an image file that is not there, an image that is none.
    """
    given = [name for name in FIELDS if row.get(name)]
    if len(given) > 1:
        raise DataError("'images' and 'image' are both there. Leave one of them out.")
    values = row[given[0]] if given else []
    one = not isinstance(values, list | tuple)
    shown = _Shown(folder)
    for number, value in enumerate([values] if one else values):
        shown.add(value, given[0] if one else f"{given[0]}[{number}]")
    made = {key: value for key, value in row.items() if key not in FIELDS}
    for name in made:
        if name in used:
            shown.next = 0
            made[name] = shown.marked(made[name], name)
    return made, tuple(shown.images)


@dataclass
class _Shown:
    """The images of a row, and how many of them the field at hand has shown."""

    folder: Path | None
    images: list[Reference] = field(default_factory=list)
    next: int = 0

    def add(self, value: Any, at: str) -> None:
        self.images.append(reference(value, at, self.folder))

    def marked(self, value: Any, at: str) -> Any:
        """The value with marks in the place of images, at any depth."""
        if isinstance(value, str):
            first, *rest = value.split(PLAIN_MARK)
            return first + "".join(self._mark(at) + text for text in rest)
        if isinstance(value, list | tuple):
            return [self.marked(inner, f"{at}[{n}]") for n, inner in enumerate(value)]
        if not isinstance(value, Mapping):
            return value
        if value.get("type") in ("image", "image_url", "input_image"):
            return {"type": "text", "text": self._of_part(value, at)}
        return {key: self.marked(inner, f"{at}.{key}") for key, inner in value.items()}

    def _of_part(self, part: Mapping[str, Any], at: str) -> str:
        key = next((key for key in _BRINGS if part.get(key) is not None), None)
        if key is None:
            return self._mark(at)
        value = part[key]
        if key == "image_url" and isinstance(value, Mapping):
            value = value.get("url")
        elif key == "source" and isinstance(value, Mapping):  # Anthropic's
            value = value.get("data") or value.get("url")
            key = "base64" if part[key].get("type") == "base64" else key
        if key == "base64":
            value = f"data:;base64,{value}"
        brought = reference(value, f"{at}.{key}", self.folder)
        if self.next == len(self.images):
            self.images.append(brought)
        elif self.images[self.next]["name"] != brought["name"]:
            raise DataError(
                f"'{at}' brings {brought['name']!r} where {self.images[self.next]['name']!r} is "
                "shown by another field. Name every image once, in one order."
            )
        return self._mark(at)

    def _mark(self, at: str) -> str:
        if self.next >= len(self.images):
            raise DataError(
                f"'{at}' shows image number {self.next + 1} and the row has {len(self.images)}: "
                f"an image mark without an image. Add it to 'images', or leave the mark out."
            )
        self.next += 1
        return mark(self.images[self.next - 1])


def reference(value: Any, at: str, folder: Path | None) -> Reference:
    """Return where an image is, by its value in the field ``at`` of a row.

    Raises:
        DataError: a URL, a file that is not there, or no image.
    """
    if isinstance(value, Mapping):  # datasets: {bytes, path}
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes | bytearray):
        return _inline(bytes(value), at)
    if isinstance(value, str) and value.startswith("data:"):
        return _inline(_decoded(value, at), at)
    if isinstance(value, str) and value:
        return _file(value, at, folder)
    if hasattr(value, "save") and hasattr(value, "convert"):  # an image of PIL, without loss
        buffer = io.BytesIO()
        value.convert("RGB").save(buffer, format="PNG")
        return _inline(buffer.getvalue(), at)
    raise DataError(
        f"'{at}' must be an image: a path, bytes or an image of PIL, not {value!r:.60}."
    )


def _inline(data: bytes, at: str) -> Reference:
    name = f"sha256:{hashlib.sha256(data).hexdigest()[:16]}"
    return {"name": name, "at": at, "base64": base64.b64encode(data).decode("ascii")}


def _decoded(url: str, at: str) -> bytes:
    head, _, data = url.partition(",")
    if not head.endswith(";base64"):
        raise DataError(f"'{at}' is a data: URL without base64.")
    try:
        return base64.b64decode(data, validate=True)
    except ValueError as error:
        raise DataError(f"'{at}' is a data: URL whose base64 is broken ({error}).") from error


def _file(value: str, at: str, folder: Path | None) -> Reference:
    if "://" in value:
        raise DataError(
            f"'{at}' is a URL ({value:.60}), and images are read again and again: download them "
            "and name the files."
        )
    if folder is None:
        raise DataError(f"'{at}' names a file ({value:.60}), and these rows have no folder.")
    path = (folder / value).resolve()
    try:
        stamp = stamp_of(path)
    except OSError as error:
        raise DataError(
            f"'{at}': the image {value!r} cannot be read ({error.strerror}). Paths are relative to "
            f"{folder} (data.images)."
        ) from error
    return {"name": value, "at": at, "path": str(path), "stamp": stamp}
