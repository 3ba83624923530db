"""Bytes of one source image to RGB pixels, or a sentence that says why not.

in   bytes  JPEG (grey, YCbCr, RGB, CMYK, YCCK), PNG, BMP or WebP under any name, gzip-compressed or not
out  pixels_HWC  uint8, RGB, 0..255, contiguous

What the decoder finds damaged is refused: a JPEG that ends early is never padded with grey. But JPEG has no
checksum, so some damage decodes to a wrong picture without a word. What the pixels do not need is ignored: EXIF
orientation (as every ImageNet pipeline does, so some images lie on their side), colour profiles, alpha
(dropped, the colour below stays). Of 16 bits the upper eight are kept.
"""

from __future__ import annotations

import io
import re
import warnings
import zlib
from dataclasses import dataclass

import numpy as np
import PIL
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, features

from ...shards import AlexshardError
from .bombs import bomb
from .image import pillow_flavour, resampler

STORED_LIMIT = 64_000_000  # bytes of one source image, inflated or not: more than a photograph has
PIXEL_LIMIT = 100_000_000  # checked in the header, before memory is taken

_FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
# Warnings of libjpeg after which the whole picture is there; real archives hold such images.
_HARMLESS = ("unknown JFIF revision", "Invalid SOS parameters")
# A careless writer leaves a few bytes at the end. But damage makes the decoder end early or late too: 136 of 336
# photographs with twenty wrong bytes in the middle left 1 to 321, and 113 of them more than these eight. (Up to
# seven are not counted.) Before a restart marker, d0 to d7, any number means that the picture went wrong.
_STRAY = re.compile(r"(\d+) extraneous bytes before marker 0x(?!d[0-7])")
STRAY_LIMIT = 8


# A JPEG may be decoded at 1/2, 1/4 or 1/8, which costs a fraction and blurs a little. With this much left to the
# resampling the stored squares have a PSNR of 46 dB against those made from all pixels (docs/packing.md).
LEAST_REDUCTION_LEFT = 1.5
_REDUCTIONS = (8, 4, 2)


class BadImage(AlexshardError):
    """One image cannot be packed; `what` is the reason for the quarantine."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """Pixels of one source image."""

    pixels_HWC: NDArray[np.uint8]
    width: int  # of the source image
    height: int
    reduction: int  # of the pixels: 1, or 2, 4, 8 where the decoder has left the finer ones out
    notes: tuple[str, ...]  # what was out of the ordinary: "gunzipped", "cmyk", …


def decode(data: bytes, *, side: int | None = None) -> Decoded:
    """The pixels of an image.

    Args:
        side: of the square that is wanted: larger JPEGs are then decoded at 1/2, 1/4 or 1/8, as far as their
            shorter side keeps 1.5 times as many pixels; None: all pixels.

    Raises:
        BadImage: the bytes are no sound image, or too large to be one.
        AlexshardError: there is no memory left, which says nothing of the image.
    """
    try:
        return _decode(data, side)
    except MemoryError:
        raise AlexshardError(
            "memory ran out while an image was decoded",
            why="the image may be sound, so it can be neither packed nor refused",
            remedy="build with fewer workers (-j) or on a machine with more memory",
        ) from None


def _decode(data: bytes, side: int | None) -> Decoded:
    notes: tuple[str, ...] = ()
    if not data:
        raise BadImage("empty: no bytes")
    if data.startswith(b"\x1f\x8b"):
        data, notes = _gunzipped(data), ("gunzipped",)
    if (reason := bomb(data)) is not None:
        raise BadImage(reason)
    if data.startswith(b"\xff\xd8"):
        try:
            height, width, colour_space, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError:
            colour_space = ""  # a subsampling that this decoder does not know: Pillow's may
        if colour_space in ("YCbCr", "Gray", "RGB"):
            _check_size(width, height)
            reduction = _reduction(min(width, height), side)
            smaller = {"min_width": -(-width // reduction), "min_height": -(-height // reduction)}
            try:
                pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB", min_factor=reduction, **smaller)
            except ValueError as error:
                if "memory" in str(error).lower():  # libjpeg's own
                    raise MemoryError from None
                if not _is_harmless(str(error)):
                    raise BadImage(f"damaged JPEG: {error}") from None
                notes += ("stray bytes" if _STRAY.search(str(error)) else "odd header",)
            else:
                notes += ("grey",) if colour_space == "Gray" else ()
                notes += (f"decoded at 1/{reduction}",) if reduction > 1 else ()
                return Decoded(pixels, width, height, reduction, notes)
    pixels, more = _decode_with_pillow(data)
    return Decoded(pixels, pixels.shape[1], pixels.shape[0], 1, notes + more)


def _reduction(shorter: int, side: int | None) -> int:
    if side is None:
        return 1
    return next((n for n in _REDUCTIONS if shorter / n >= LEAST_REDUCTION_LEFT * side), 1)


def _is_harmless(warning: str) -> bool:
    stray = _STRAY.search(warning)
    if stray is not None:
        return int(stray[1]) <= STRAY_LIMIT
    return any(harmless in warning for harmless in _HARMLESS)


def decoder_versions() -> dict[str, str]:
    """Names and versions of everything that decides the pixels and bytes of a set."""
    return {
        "jpeg": f"simplejpeg {simplejpeg.__version__}",
        "resampler": resampler(),
        "other_formats": f"{pillow_flavour()}, libjpeg-turbo {features.version('libjpeg_turbo')}",
    }


def decoding(*, exact: bool) -> str:
    """Which pixels of a JPEG are decoded, in words for the manifest."""
    if exact:
        return "all pixels"
    return f"at 1/2, 1/4 or 1/8 where the shorter side then has {LEAST_REDUCTION_LEFT} times the stored one"


def _gunzipped(data: bytes) -> bytes:
    inflater = zlib.decompressobj(wbits=31)
    try:
        inflated = inflater.decompress(data, STORED_LIMIT)
    except zlib.error as error:
        raise BadImage(f"damaged gzip data: {error}") from None
    if inflater.unconsumed_tail:
        raise BadImage(f"gzip data that inflates to more than {STORED_LIMIT:,} bytes")
    if not inflater.eof:
        raise BadImage("damaged gzip data: it ends early")
    return inflated


def _check_size(width: int, height: int) -> None:
    if width < 1 or height < 1 or width * height > PIXEL_LIMIT:
        raise BadImage(f"claims {width}×{height} pixels; up to {PIXEL_LIMIT:,} are decoded")


def _decode_with_pillow(data: bytes) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about EXIF and bombs: neither matters here, both are dealt with
        try:
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                _check_size(*image.size)
                image.load()
                return _rgb(image), _notes(image)
        except (BadImage, MemoryError):
            raise
        except PIL.UnidentifiedImageError:
            raise BadImage(f"no image: begins with {data[:12]!r}") from None
        except Image.DecompressionBombError as error:
            raise BadImage(f"too many pixels: {error}") from None
        except Exception as error:  # whatever a decoder stumbles on: the image is bad, the build is not
            raise BadImage(f"cannot be decoded: {str(error) or type(error).__name__}") from None


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I"):
        upper = np.asarray(image) >> 8
        return np.repeat(np.clip(upper, 0, 255).astype(np.uint8)[:, :, None], 3, axis=2)
    # Adobe's CMYK JPEGs store inks inverted; Pillow has put that right at decoding.
    return np.ascontiguousarray(image.convert("RGB"))


def _notes(image: Image.Image) -> tuple[str, ...]:
    notes = []
    if image.format not in ("JPEG", "MPO"):
        notes.append(str(image.format).lower())
    if image.mode == "CMYK":
        notes.append("ycck" if image.info.get("adobe_transform") == 2 else "cmyk")
    if "A" in image.getbands() or "transparency" in image.info:
        notes.append("alpha dropped")
    return tuple(notes)
