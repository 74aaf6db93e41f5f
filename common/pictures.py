"""Opens pictures that a stranger may have made: turned as the camera was held, and bounded.

Needs no torch. Knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO
from typing import TYPE_CHECKING

from common.errors import InputError
from common.extras import require

if TYPE_CHECKING:
    from PIL.Image import Image

# Decoded, a picture takes up to 16 bytes a pixel.
MOST_PIXELS = 16_000_000
_KINDS = ("PNG", "JPEG", "GIF", "BMP", "WEBP")


def open_pictures(
    contents: Sequence[bytes],
    most_pixels: int = MOST_PIXELS,
    most_in_all: int | None = None,
    check: Callable[[], None] = lambda: None,
) -> list[Callable[[], Image]]:
    """Return what decodes each picture; none is decoded before all sizes are known to be right.

    Args:
        contents: the pictures' files.
        most_pixels: of a picture.
        most_in_all: pixels of all of them; no bound if None.
        check: called again and again while a picture is decoded; what it raises ends that.

    Raises:
        InputError: one is of no known kind, damaged, or too large; or all together are.
    """
    opened = [_Opened(content, most_pixels, check) for content in contents]
    pixels = sum(picture.pixels for picture in opened)
    if most_in_all is not None and pixels > most_in_all:
        raise InputError(
            f"{len(opened)} pictures have {pixels:,} pixels; at most {most_in_all:,} in all: send "
            "fewer, or smaller ones"
        )
    return [picture.decode for picture in opened]


def open_picture(content: bytes, most_pixels: int = MOST_PIXELS) -> Image:
    """Return a picture, turned as its camera was held.

    Raises:
        InputError: it is of no known kind, damaged, or too large.
    """
    (decode,) = open_pictures([content], most_pixels)
    return decode()


class _Opened:
    def __init__(self, content: bytes, most_pixels: int, check: Callable[[], None]) -> None:
        require("serve", "a picture", "PIL")
        from PIL import Image

        self._file = _Checked(content)
        try:
            self._picture = Image.open(self._file, formats=_KINDS)
        # Decoders raise all sorts of things at what is no picture.
        except Exception as error:
            raise _unreadable() from error
        width, height = self._picture.size
        self.pixels = width * height
        if self.pixels > most_pixels:
            raise InputError(f"a picture has {width}×{height} pixels; at most {most_pixels:,}")
        self._file.check = check

    def decode(self) -> Image:
        """Return the picture, turned.

        Raises:
            InputError: it is damaged.
        """
        from PIL import ImageOps

        try:
            turned = ImageOps.exif_transpose(self._picture)
        except Exception as error:
            # What the check raises is no fault of the picture's.
            self._file.check()
            raise _unreadable() from error
        # A copy; those of a request are not all in memory at once.
        self._picture.close()
        return turned


class _Checked(BytesIO):
    """A file that is asked, each time that a decoder reads on, whether it may."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.check: Callable[[], None] = lambda: None

    def read(self, size: int | None = -1, /) -> bytes:
        self.check()
        return super().read(size)


def _unreadable() -> InputError:
    return InputError(f"no readable picture; use one of {', '.join(_KINDS)}")
