"""One picture from one file: upright, square, 8 bits, grey or RGB, whatever the file holds.

Files are hostile until decoded: only formats that Pillow decodes by itself are tried (PostScript would start another
program), a picture of more than `PIXEL_LIMIT` pixels is refused from its header, and whatever a decoder raises
becomes one reason.
"""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

if TYPE_CHECKING:
    from PIL import Image

PIXEL_LIMIT = 64_000_000
WHITE = 65_535  # of 16 bits
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP", "AVIF", "ICO")
SUFFIXES = frozenset(".bmp .gif .jpg .jpeg .jpe .jp2 .png .pbm .pgm .ppm .pnm .tga .tif .tiff .webp .avif .ico".split())
# what is said of usable files that had to be changed
REMARKS = {
    "animated": "are animated or have several pages: the first is used",
    "CMYK": "are CMYK: converted to RGB",
    "16-bit": "have 16 bits a channel: rounded to 8",
    "few levels": "have 16 bits a colour and use few of the upper 8, which alone are read: save them with 8 bits",
    "rotated": "are turned upright as their EXIF data says",
    "shown": "are turned, mirrored or stretched as the film says that it is to be shown",
    "transparent": "are transparent: laid on white",
    "short": "have fewer frames than asked for: some are repeated",
    "odd name": "have control characters or undecodable bytes in their names: shown escaped",
}


class Unusable(Exception):
    """Why a file cannot be used, in a few words."""


@dataclass(frozen=True)
class Decoded:
    """Pixels (one channel if grey, else three) and what had to be done to get them, as keys of `REMARKS`.

    `peak` is the largest value of pixels that had 16 bits, 0 if they had fewer.
    """

    pixels: UInt8[np.ndarray, "*frames height width channels"]
    remarks: frozenset[str]
    peak: int = 0


def read_still(path: str | Path, size: tuple[int, int], white: int = WHITE) -> Decoded:
    """The middle of a picture at `size` (rows, columns), `uint8 [rows, columns, 1 or 3]`.

    `white` is the value of 16 bits that becomes 255: less than 65,535 where a scanner used fewer bits.

    Raises:
        Unusable: with the reason, for whatever cannot be decoded whole.
    """
    require_file(path)
    from PIL import Image

    try:
        with _pixel_limit(), open(path, "rb") as file, Image.open(file, formats=_formats()) as image:
            plain, remarks, peak = _decode(image, white)
    except Unusable:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise Unusable(f"more than {PIXEL_LIMIT // 1_000_000} million pixels") from None
    except Image.UnidentifiedImageError:
        raise Unusable("not an image that can be read") from None
    except Exception as error:  # decoders raise anything on broken files: SyntaxError, struct.error, EOFError, ...
        raise Unusable(f"broken image: {reason_of(error)}") from None
    return Decoded(crop(plain, size), remarks, peak)


def require_file(path: str | Path) -> None:
    """Raises Unusable unless this is a regular file with something in it; never opens a pipe."""
    try:
        status = os.stat(path)
    except OSError as error:
        if os.path.islink(path):
            raise Unusable("a symbolic link that leads nowhere, or in a circle") from None
        raise Unusable(f"cannot be read: {reason_of(error)}") from None
    if not stat.S_ISREG(status.st_mode):
        raise Unusable("not a regular file")
    if status.st_size == 0:
        raise Unusable("empty: 0 bytes")
    if not os.access(path, os.R_OK):
        raise Unusable("cannot be read: no permission")


def reason_of(error: Exception) -> str:
    """The first line of an error, without the path that the caller names anyway."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


def _formats() -> list[str]:
    """Those of FORMATS that this build of Pillow has."""
    from PIL import Image

    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


@contextmanager
def _pixel_limit() -> Iterator[None]:
    """Pillow with its pixel limit lowered and the warning made an error; as before afterwards."""
    from PIL import Image

    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = PIXEL_LIMIT
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata, which does not matter here
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _decode(image: Image.Image, white: int) -> tuple[Image.Image, frozenset[str], int]:
    """The picture decoded, upright, in mode L or RGB, what had to be done for that, and its peak if it had 16 bits."""
    from PIL import ImageOps

    remarks: set[str] = set()
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # MPO: a photograph with previews
        remarks.add("animated")
    deep = ";16" in image.mode or ";16" in str(getattr(image, "tile", ""))  # Pillow itself cuts 16-bit RGB to 8
    remarks |= {"16-bit"} if deep else set()
    remarks |= {"CMYK"} if image.mode == "CMYK" else set()
    remarks |= {"rotated"} if image.getexif().get(0x0112, 1) in range(2, 9) else set()
    image.load()
    upright = ImageOps.exif_transpose(image)
    if upright.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in upright.info:
        remarks.add("transparent")
    if not deep:
        return _to_grey_or_rgb(upright, WHITE), frozenset(remarks), 0
    if upright.mode.startswith("I;16"):
        return _to_grey_or_rgb(upright, white), frozenset(remarks), int(np.asarray(upright).max())
    upper = _to_grey_or_rgb(upright, WHITE)  # the upper 8 bits of each channel
    most = int(np.asarray(upper).max())
    remarks |= {"few levels"} if most < 128 else set()
    if most and white < WHITE:
        upper = upper.point([min(255, round(255 * value / (white >> 8))) for value in range(256)] * len(upper.mode))
    return upper, frozenset(remarks), 256 * most + 255 if most else 0


def crop(image: Image.Image, size: tuple[int, int], wide: float = 1.0) -> UInt8[np.ndarray, "rows columns channels"]:
    """A picture in mode L or RGB at rows × columns: the largest middle part of that shape, resized (bilinear).

    Its pixels are shown `wide` times as wide as high.
    """
    from PIL import Image

    rows, columns = size
    scale = min(image.width * wide / columns, image.height / rows)
    across = columns * scale / wide
    left, top = (image.width - across) / 2, (image.height - rows * scale) / 2
    box = (left, top, min(left + across, image.width), min(top + rows * scale, image.height))
    small = image.resize((columns, rows), Image.Resampling.BILINEAR, box=box)
    return np.asarray(small, np.uint8).reshape(rows, columns, -1)


def _to_grey_or_rgb(image: Image.Image, white: int) -> Image.Image:
    """The picture in mode L or RGB, the value `white` of 16 bits at 255."""
    from PIL import Image

    if image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.uint32)
        return Image.fromarray(np.minimum((values * 255 + white // 2) // white, 255).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise Unusable("32-bit pixels have no fixed range: save it with 8 or 16 bits")
    grey = image.mode in ("1", "L", "LA", "La")
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        clear = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear)
    return image.convert("L" if grey else "RGB")
