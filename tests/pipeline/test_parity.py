"""The graph against the NumPy statement of every operation, both fed the same draws."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from alexshard.pipeline import AUGMENTATIONS, Loader, draw, epoch_order, reference, ten_views
from alexshard.shards import ShardFiles, ShardSet

SEED, EPOCH, BATCH, SLACK, SIDE = 5, 2, 24, 10, 64

# Largest difference of a pixel after the whole way, in grey levels.
RAW = {"atol": 1e-3, "rtol": 0}

# Pillow's decoder (pillow-simd 12.1.1.post0) against the loader's (simplejpeg 1.9.0), both libjpeg-turbo: no pixel
# of 2,484 real photographs, packed at quality 90, differed.
DECODERS_DIFFER = 0.0


def one_batch(pictures, **options):
    with Loader(pictures.path, batch_size=BATCH, seed=SEED, epoch=EPOCH, **options) as loader:
        return next(iter(loader))


def expected_training(pixels, pictures, preset, mean_HWC):
    augmentation = AUGMENTATIONS[preset]
    order = epoch_order([len(pixels)], seed=SEED, epoch=EPOCH).samples[:BATCH]
    draws = draw(augmentation, seed=SEED, epoch=EPOCH, start=0, stop=BATCH, slack=SLACK)
    statistics = pictures.statistics
    return reference.training_images(
        pixels[order],
        draws,
        side=SIDE,
        mean_HWC=mean_HWC,
        jitter_N3=reference.jitter_of(
            draws.normals, augmentation, np.array(statistics.eigenvalues), np.array(statistics.eigenvectors)
        ),
        augmentation=augmentation,
    )


@pytest.mark.parametrize("mean", ["image", "channel"])
@pytest.mark.parametrize("preset", ["paper", "original"])
def test_training_images_of_a_raw_set_equal_the_reference(raw_set, preset, mean):
    flat = np.broadcast_to(raw_set.statistics.channel_mean, raw_set.mean_image.shape)
    mean_HWC = raw_set.mean_image if mean == "image" else flat
    expected = expected_training(raw_set.pixels["train"], raw_set, preset, mean_HWC)
    batch = one_batch(raw_set, augment=preset, mean=mean)

    assert batch.images.dtype == torch.float32
    np.testing.assert_allclose(batch.images.numpy(), expected, **RAW)


@pytest.mark.parametrize("preset", ["paper", "original"])
def test_training_images_of_a_jpeg_set_differ_from_the_reference_as_two_decoders_do(jpeg_set, preset):
    pixels = stored_pixels(ShardSet.open(jpeg_set.path))
    expected = expected_training(pixels, jpeg_set, preset, jpeg_set.mean_image)
    batch = one_batch(jpeg_set, augment=preset)

    np.testing.assert_allclose(batch.images.numpy(), expected, atol=DECODERS_DIFFER + 1e-3, rtol=0)


def stored_pixels(shard_set):
    """Every image of train, decoded by the reference."""
    with ShardFiles(shard_set.index("train"), shard_set.shelf) as stored:
        return np.stack([reference.decoded(stored.bytes_of(i), "jpg") for i in range(len(stored.index))])


@pytest.mark.parametrize("mean_crop", ["own", "centre"])
@pytest.mark.parametrize("views", [1, 10])
def test_views_at_test_time_equal_the_reference(raw_set, views, mean_crop):
    order = epoch_order([73], seed=SEED, epoch=EPOCH).samples[:BATCH]
    places = ten_views(SLACK) if views == 10 else ((SLACK // 2, SLACK // 2, False),)
    expected = reference.views_of(
        raw_set.pixels["train"][order], side=SIDE, mean_HWC=raw_set.mean_image, mean_crop=mean_crop, views=places
    )
    batch = one_batch(raw_set, augment=None, views=views, mean_crop=mean_crop)
    images = batch.images if views == 10 else batch.images[:, None]

    np.testing.assert_allclose(images.numpy(), expected, **RAW)


@pytest.mark.parametrize("preset", ["paper", "original"])
def test_bytes_with_their_offset_scale_and_place_make_the_floats(raw_set, preset):
    floats = one_batch(raw_set, augment=preset)
    whole = one_batch(raw_set, augment=preset, output="uint8")
    mean = torch.from_numpy(raw_set.mean_image).permute(2, 0, 1)
    assert whole.images.dtype == torch.uint8

    for i in range(BATCH):
        y, x = (5, 5) if preset == "original" else whole.crop[i].tolist()
        part = mean[:, y : y + SIDE, x : x + SIDE]
        if preset == "paper" and whole.mirror[i]:
            part = part.flip(-1)
        made = (whole.images[i] - part + whole.offset[i, :, None, None]) * whole.scale
        torch.testing.assert_close(made.float(), floats.images[i], atol=1e-3, rtol=0)


@pytest.mark.parametrize("views", [1, 10])
def test_bytes_are_the_stored_pixels(raw_set, views):
    batch = one_batch(raw_set, augment=None if views == 10 else "paper", views=views, output="uint8")
    order = epoch_order([73], seed=SEED, epoch=EPOCH).samples[:BATCH]
    images = batch.images.reshape(BATCH, views, 3, SIDE, SIDE)
    crop, mirror = batch.crop.reshape(BATCH, views, 2), batch.mirror.reshape(BATCH, views)

    for i, sample in enumerate(order):
        for v in range(views):
            y, x = crop[i, v].tolist()
            part = raw_set.pixels["train"][sample][y : y + SIDE, x : x + SIDE]
            part = part[:, ::-1] if mirror[i, v] else part
            assert np.array_equal(images[i, v].permute(1, 2, 0).numpy(), part)


def test_jitter_ends_after_its_steps_and_the_division_with_it(raw_set):
    with Loader(
        raw_set.path, batch_size=24, seed=SEED, augment="original", jitter_steps=4, output="uint8"
    ) as loader:
        batches = [batch for _ in range(2) for batch in loader]
    jittered = [bool(batch.offset.any()) for batch in batches]

    assert jittered == [True, True, True, True, False, False]
    assert [batch.scale for batch in batches] == [1 / 1.1] * 4 + [1.0] * 2


@pytest.mark.parametrize("mean", ["image", "channel"])
def test_floats_follow_the_division_to_its_end(raw_set, mean):
    options = {"batch_size": 24, "seed": SEED, "augment": "original", "jitter_steps": 1}
    with (
        Loader(raw_set.path, mean=mean, **options) as floats,
        Loader(raw_set.path, output="uint8", **options) as whole,
    ):
        batches = list(zip(floats, whole, strict=True))
    channels = torch.tensor(raw_set.statistics.channel_mean).reshape(3, 1, 1)
    central = torch.from_numpy(raw_set.mean_image[5:69, 5:69]).permute(2, 0, 1)

    assert [made.scale for made, _ in batches] == [1 / 1.1, 1.0, 1.0]
    for made, pixels in batches:
        expected = pixels.images - (central if mean == "image" else channels) + pixels.offset[..., None, None]
        torch.testing.assert_close(made.images.double(), expected.double() * pixels.scale, **RAW)


def test_published_components_are_an_option(raw_set):
    own = one_batch(raw_set, eigen="set", output="uint8").offset
    published = one_batch(raw_set, eigen="published", output="uint8").offset
    normals = draw(AUGMENTATIONS["paper"], seed=SEED, epoch=EPOCH, start=0, stop=BATCH, slack=SLACK).normals
    expected = normals @ AUGMENTATIONS["paper"].jitter_matrix(None)

    np.testing.assert_allclose(published.numpy(), expected, atol=1e-5)
    assert not torch.allclose(own, published)


def test_another_crop_can_be_asked_for(raw_set):
    with Loader(raw_set.path, batch_size=8, crop=70, augment=None) as loader:
        assert (loader.side, loader.border, len(loader)) == (70, 2, 9)
        assert next(iter(loader)).images.shape == (8, 3, 70, 70)


def test_real_photographs_come_out_as_the_reference_says(assembled, tmp_path):
    """The way of a person with archives: build, then load."""
    command = [
        sys.executable,
        "-m",
        "alexshard.tools.cli_alexshard",
        "build",
        assembled("full"),
        "--out",
        tmp_path,
    ]
    subprocess.run([*map(str, command), "--max-bad", "0"], check=True, capture_output=True)
    shard_set = ShardSet.open(tmp_path)
    pixels, mean_HWC = stored_pixels(shard_set), shard_set.mean_image()
    with Loader(shard_set, batch_size=16, augment="original", seed=SEED) as loader:
        assert len(loader) > 1
        for number, batch in enumerate(loader):
            start = number * 16
            samples = epoch_order([len(pixels)], seed=SEED, epoch=0).samples[start : start + 16]
            draws = draw(AUGMENTATIONS["original"], seed=SEED, epoch=0, start=start, stop=start + 16, slack=32)
            statistics = shard_set.manifest.statistics
            jitter = reference.jitter_of(
                draws.normals,
                AUGMENTATIONS["original"],
                np.array(statistics.eigenvalues),
                np.array(statistics.eigenvectors),
            )
            expected = reference.training_images(
                pixels[samples],
                draws,
                side=224,
                mean_HWC=mean_HWC,
                jitter_N3=jitter,
                augmentation=AUGMENTATIONS["original"],
            )
            np.testing.assert_allclose(batch.images.numpy(), expected, atol=DECODERS_DIFFER + 1e-3, rtol=0)
