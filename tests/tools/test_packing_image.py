"""Decoding is strict and bounded, colours are right, the stored square lies on the grid of fidelity.md §3.1."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
import warnings
import zlib
from math import floor

import numpy as np
import pytest
import simplejpeg
from alexshard.shards import ImageFormat, ppm_pixels
from alexshard.tools.packing.decode import PIXEL_LIMIT, STORED_LIMIT, STRAY_LIMIT, BadImage, decode
from alexshard.tools.packing.image import central_square, encoded, kept_box
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.tools import drawn


def rgbx(pixels_HWC):
    """The same pixels as a square has them, with a fourth byte."""
    return np.dstack([pixels_HWC, np.zeros(pixels_HWC.shape[:2], np.uint8)])


def rgb(data):
    """The colours that an image decodes to."""
    return decode(data).pixels_HWC


def differ(first, second) -> float:
    """Mean absolute difference in levels."""
    return float(np.abs(first.astype(int) - second.astype(int)).mean())


# --- the grid


@given(width=st.integers(1, 5000), height=st.integers(1, 5000), side=st.sampled_from([32, 64, 256]))
def test_the_box_is_the_central_square_of_the_rounded_resize(width, height, side):
    scale = side / min(width, height)
    resized = [floor(length * scale + 0.5 + 1e-9) for length in (width, height)]
    start = [floor((length - side) / 2) for length in resized]

    left, top, right, bottom = kept_box(width, height, side)

    assert min(resized) == side
    assert (left, top) == pytest.approx((start[0] * width / resized[0], start[1] * height / resized[1]))
    assert (right - left, bottom - top) == pytest.approx((side * width / resized[0], side * height / resized[1]))
    assert left >= 0
    assert top >= 0
    assert right <= width
    assert bottom <= height


def bicubic_weights(length: int, start: float, stop: float, side: int) -> np.ndarray:
    """Antialiased bicubic (a = −0.5) of an interval to `side` pixels; weights (side, length), written anew."""
    scale = (stop - start) / side
    stretch = max(scale, 1.0)
    weights = np.zeros((side, length))
    for i in range(side):
        x = np.abs((np.arange(length) + 0.5 - (start + (i + 0.5) * scale)) / stretch)
        inner = (1.5 * x - 2.5) * x * x + 1
        outer = ((-0.5 * x + 2.5) * x - 4) * x + 2
        weights[i] = np.where(x < 1, inner, np.where(x < 2, outer, 0))
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("width", "height", "side"), [(500, 375, 256), (333, 500, 256), (75, 56, 256), (61, 40, 32)]
)
def test_the_stored_square_is_antialiased_bicubic_on_that_grid(width, height, side):
    pixels = drawn.pixels(5, width, height)
    left, top, right, bottom = kept_box(width, height, side)
    rows, columns = bicubic_weights(height, top, bottom, side), bicubic_weights(width, left, right, side)
    expected = np.einsum("yh,hwc,xw->yxc", rows, pixels.astype(np.float64), columns, optimize=True)

    square = central_square(pixels, side)[:, :, :3]

    assert square.shape == (side, side, 3)
    # Pillow rounds to bytes between its two passes.
    assert np.abs(square - np.clip(expected, 0, 255)).max() < 1.6


def test_an_image_of_the_stored_size_is_kept_to_the_pixel():
    pixels = drawn.pixels(1, 32, 32)

    assert np.array_equal(central_square(pixels, 32)[:, :, :3], pixels)


# --- encodings


def test_a_raw_set_stores_the_very_pixels():
    pixels = drawn.pixels(2, 32, 32)

    assert np.array_equal(ppm_pixels(encoded(rgbx(pixels), ImageFormat(32, "raw"))), pixels)


def test_a_stored_jpeg_is_baseline_4_2_0_of_the_quality_asked_for():
    pixels = drawn.pixels(2, 256, 256)
    stored = {q: encoded(rgbx(pixels), ImageFormat(256, "jpeg", q, "4:2:0")) for q in (50, 90)}
    image = Image.open(io.BytesIO(stored[90]))

    assert (image.size, image.mode, image.layer[0][1:3], "progressive" in image.info) == (
        (256, 256),
        "RGB",
        (2, 2),
        False,
    )
    assert len(stored[50]) < len(stored[90])
    assert differ(rgb(stored[90]), pixels) < 2


# --- what decodes, and how


PIXELS = drawn.pixels(3)
PICTURE = Image.fromarray(PIXELS)


@pytest.mark.parametrize(
    ("data", "notes", "tolerance"),
    [
        (drawn.encoded(PICTURE, "JPEG"), (), 3),
        (drawn.encoded(PICTURE, "JPEG", progressive=True), (), 3),
        (gzip.compress(drawn.encoded(PICTURE, "JPEG")), ("gunzipped",), 3),
        (drawn.encoded(PICTURE, "PNG"), ("png",), 0),
        (drawn.encoded(PICTURE, "BMP"), ("bmp",), 0),
        (drawn.encoded(PICTURE.convert("RGBA"), "PNG"), ("png", "alpha dropped"), 0),
        (drawn.encoded(PICTURE.convert("CMYK"), "JPEG"), ("cmyk",), 3),
        (drawn.encoded(PICTURE.quantize(256), "PNG"), ("png",), 8),
    ],
    ids=["jpeg", "progressive", "gzip", "png", "bmp", "alpha", "cmyk", "palette"],
)
def test_every_form_of_a_picture_decodes_to_the_same_colours(data, notes, tolerance):
    found = decode(data)

    assert (found.pixels_HWC.dtype, found.pixels_HWC.shape) == (np.uint8, (40, 48, 3))
    assert (found.width, found.height, found.reduction, found.notes) == (48, 40, 1, notes)
    assert differ(found.pixels_HWC, PIXELS) <= tolerance


def test_grey_images_get_three_equal_channels():
    grey = drawn.encoded(PICTURE.convert("L"), "JPEG")
    pixels = rgb(grey)

    assert decode(grey).notes == ("grey",)
    assert np.array_equal(pixels[:, :, 0], pixels[:, :, 1])
    assert np.array_equal(pixels[:, :, 0], pixels[:, :, 2])


def test_of_sixteen_bits_the_upper_eight_are_kept():
    deep = PIXELS[:, :, 0].astype(np.uint16) * 256 + 77

    pixels = rgb(drawn.encoded(Image.fromarray(deep), "PNG"))

    assert np.array_equal(pixels[:, :, 1], PIXELS[:, :, 0])


def test_alpha_is_dropped_and_the_colour_below_it_stays():
    hidden = Image.fromarray(np.dstack([PIXELS, np.zeros((40, 48), np.uint8)]))

    assert np.array_equal(rgb(drawn.encoded(hidden, "PNG")), PIXELS)


def test_exif_orientation_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6

    pixels = rgb(drawn.encoded(PICTURE, "JPEG", exif=exif))

    assert pixels.shape == (40, 48, 3)
    assert differ(pixels, PIXELS) < 3


@pytest.mark.parametrize("subsampling", ["444", "422", "420", "440", "411"])
def test_every_subsampling_keeps_the_colours(subsampling):
    data = simplejpeg.encode_jpeg(PIXELS, quality=95, colorsubsampling=subsampling)

    assert differ(rgb(data), PIXELS) < 4


# --- what is refused


SOUND = drawn.jpeg(3, 200, 160)


def claiming(data: bytes, width: int, height: int) -> bytes:
    """A JPEG whose frame header says another size."""
    changed = bytearray(data)
    struct.pack_into(">HH", changed, data.index(b"\xff\xc0") + 5, height, width)
    return bytes(changed)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"This is not an image.\n" * 50, "no image: begins with"),
        (SOUND[: len(SOUND) // 3], "damaged JPEG: Premature end"),
        (SOUND[:-2], "damaged JPEG: Premature end"),
        (SOUND[: len(SOUND) // 2] + b"\xff\xd9", "damaged JPEG: .*premature end"),
        (SOUND[: len(SOUND) // 2] + bytes(len(SOUND) // 2), "damaged JPEG"),
        (drawn.encoded(PICTURE, "PNG")[:-400], "cannot be decoded"),
        (drawn.encoded(PICTURE.convert("CMYK"), "JPEG")[:-200], "cannot be decoded: image file is truncated"),
        (gzip.compress(SOUND)[:-20], "gzip data: it ends early"),
        (b"\x1f\x8b" + b"nonsense" * 9, "damaged gzip data"),
        (gzip.compress(bytes(STORED_LIMIT + 1), 1), "inflates to more than"),
        (gzip.compress(gzip.compress(SOUND)), "no image"),
        (claiming(SOUND, 65500, 65500), "claims 65500×65500 pixels"),
        (claiming(drawn.encoded(PICTURE.convert("CMYK"), "JPEG"), 65500, 65500), "pixels"),
        (SOUND[:40], "no image|cannot be decoded|damaged JPEG"),
    ],
)
def test_what_is_no_sound_image_is_refused_with_the_reason(data, reason):
    with pytest.raises(BadImage, match=reason):
        decode(data)


def test_a_png_that_claims_absurd_dimensions_is_refused_before_it_is_inflated():
    data = bytearray(drawn.encoded(Image.new("L", (8, 8)), "PNG"))
    struct.pack_into(">II", data, 16, 20_000, 20_000)
    struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))

    with pytest.raises(BadImage, match=f"claims 20000×20000 pixels; up to {PIXEL_LIMIT:,}|too many pixels"):
        decode(bytes(data))


def test_stray_bytes_before_the_end_are_no_damage_but_a_cut_behind_them_is():
    stray = SOUND[:-2] + bytes(9) + SOUND[-2:]

    assert decode(stray).notes == ("stray bytes",)
    assert differ(rgb(stray), rgb(SOUND)) == 0
    with pytest.raises(BadImage):
        decode(stray[:-2])


def test_more_than_a_few_stray_bytes_are_damage():
    stray = SOUND[:-2] + bytes(STRAY_LIMIT + 9) + SOUND[-2:]  # the decoder swallows up to eight

    with pytest.raises(BadImage, match=r"damaged JPEG: .* extraneous bytes"):
        decode(stray)


def test_stray_bytes_before_a_restart_marker_are_damage():
    data = drawn.jpeg(3, 200, 160, restart_marker_blocks=4)
    at = data.index(b"\xff\xd0")

    with pytest.raises(BadImage, match="extraneous bytes before marker 0xd0"):
        decode(data[:at] + bytes(3) + data[at:])


def test_noise_in_the_middle_of_a_photograph_is_mostly_noticed():
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (200, 240, 3), dtype=np.uint8))
    photograph = drawn.encoded(picture.resize((480, 400)), "JPEG", quality=90)
    refused = 0
    for _ in range(40):
        data, at = bytearray(photograph), int(rng.integers(2000, len(photograph) - 2000))
        data[at : at + 20] = rng.bytes(20)
        try:
            decode(bytes(data))
        except BadImage:
            refused += 1

    assert refused >= 30


@given(places=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=20))
def test_damaged_images_decode_or_are_refused_without_a_warning(places):
    for form in (SOUND, drawn.encoded(PICTURE, "PNG"), drawn.encoded(PICTURE.convert("CMYK"), "JPEG")):
        data = bytearray(form)
        for at, value in places:
            data[at % len(data)] = value
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                pixels = decode(bytes(data)).pixels_HWC
            except BadImage:
                continue
        assert (pixels.dtype, pixels.shape[2]) == (np.uint8, 3)


# --- the real oddities


def real_images(shared) -> dict[str, bytes]:
    """Every image of the shipped tars by bare name, as it was before assemble.py made it odd."""
    images = {}
    for name in ("images-ten.tar", "images-full.tar"):
        with tarfile.open(shared / "data" / name) as archive:
            for info in archive:
                images[info.name.rpartition("/")[2]] = archive.extractfile(info).read()
    return images


def odd_member(source, split: str, name: str) -> bytes:
    """The bytes of one member of an assembled edition, read by tarfile."""
    outer = next(source.glob(f"*_{split}.tar"))
    with tarfile.open(outer) as archive:
        if split == "train":
            inner = archive.extractfile(name.partition("_")[0] + ".tar")
            with tarfile.open(fileobj=inner) as nested:
                return nested.extractfile(name).read()
        return next(archive.extractfile(info).read() for info in archive if info.name.rpartition("/")[2] == name)


@pytest.mark.parametrize("kind", ["2010", "2012"])
def test_real_oddities_keep_the_colours_of_the_images_they_were_made_from(shared, assembled, kind):
    source, originals = assembled(kind), real_images(shared)
    oddities = json.loads((source / "EXPECTED.json").read_text(encoding="utf-8"))["oddities"]
    made = {
        "gzip": ("gunzipped",),
        "png": ("png",),
        "cmyk": ("cmyk",),
        "ycck": ("ycck",),
        "progressive": (),
        "orientation-6": (),
        "broken-exif": (),
        "extraneous-byte": (),
    }
    differences = {}
    for oddity, notes in made.items():
        at = oddities[oddity]
        found = decode(odd_member(source, at["split"], at["name"]))
        with Image.open(io.BytesIO(originals[at["name"]])) as image:
            differences[oddity] = differ(found.pixels_HWC, np.asarray(image.convert("RGB")))
        assert set(notes) <= set(found.notes), oddity

    assert differences.keys() == made.keys()
    assert max(differences.values()) < 4, differences
