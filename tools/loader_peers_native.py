"""Peers that decode below Python: DALI by its own readers, FFCV, SPDL.

DALI here is a peer like others, driven from its own reader as its documentation shows: nothing of our pipeline is
in its way. The jitter is folded into the mean that it subtracts from each image, which costs it least.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.dlpack import from_dlpack

from ..shards import ppm_bytes, ppm_pixels
from .loader_peers_common import Asked, Draws, Peer, PeerBatch, StoredFiles, nchw, needed

_SHUFFLE_BUFFER = 1024  # DALI's default
_LAPS = 64  # FFCV: permuted together, so that its stop at an epoch's end is as rare as in ImageNet


def _dali(asked: Asked, *, region: bool = False) -> Any:
    """Its webdataset reader with our indexes."""
    return _dali_batches(asked, lambda fn, types, place: _from_tars(asked, fn, types, place, region=region))


def _from_tars(
    asked: Asked, fn: Any, types: Any, place: dict[str, Any], *, region: bool
) -> tuple[Any, Any, dict[str, Any]]:
    """Images, labels as text, and where the images are still to be cropped."""
    side, stored = asked.side, asked.stored_side
    file, digits = fn.readers.webdataset(
        paths=[str(path) for path in asked.shards],
        index_paths=[str(path.with_suffix(".idx")) for path in asked.shards],
        ext=[asked.extension, "cls"],
        missing_component_behavior="empty",
        random_shuffle=True,
        initial_fill=_SHUFFLE_BUFFER,
        seed=asked.seed,
        name="reader",
    )
    if asked.raw:  # the pixels are the end of the file; quicker than its decoder of PPM
        start = len(ppm_bytes(np.zeros((stored, stored, 3), np.uint8))) - stored * stored * 3
        pixels = fn.slice(file, start, stored * stored * 3, axes=[0])
        return fn.reshape(pixels, shape=[stored, stored, 3], layout="HWC"), digits, place
    if not region:
        return fn.decoders.image(file, output_type=types.RGB, adjust_orientation=False), digits, place
    cut = fn.decoders.image_crop(file, crop=(side, side), output_type=types.RGB, adjust_orientation=False, **place)
    return cut, digits, {}


def _from_npy(asked: Asked, fn: Any, place: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    folder = asked.cache / f"npy-{asked.shard_set.digest[:16]}-{asked.split}"
    paths, labels = _written_as_npy(asked, folder)
    pixels = fn.readers.numpy(files=paths, shuffle_after_epoch=True, seed=asked.seed, name="reader")
    number = fn.readers.numpy(files=labels, shuffle_after_epoch=True, seed=asked.seed)
    return fn.reshape(pixels, layout="HWC"), number, place


def _dali_batches(asked: Asked, source: Any) -> Any:
    """The rest of DALI's graph: crop, mirror and mean in one fused operator, the jitter folded into the mean."""

    @contextmanager
    def opened() -> Iterator[Iterator[PeerBatch]]:
        fn, types = needed("nvidia.dali.fn"), needed("nvidia.dali.types")
        side = asked.side
        pipeline = needed("nvidia.dali").Pipeline(
            batch_size=asked.batch_size,
            num_threads=asked.threads,
            device_id=None,
            exec_dynamic=True,  # its outputs may be kept, so torch takes them without a copy
            seed=asked.seed,
        )
        with pipeline:
            half = (asked.slack // 2) / max(1, asked.slack)
            place: dict[str, Any] = {"crop_pos_y": half, "crop_pos_x": half}
            mirror: Any = 0
            if asked.augmented:
                place = {key: fn.random.uniform(range=[0.0, 1.0]) for key in place}
                mirror = fn.random.coin_flip()
            images, digits, place = source(fn, types, place)
            fused = {"crop": (side, side), "mirror": mirror, **place}
            if asked.floats:
                offset: Any = asked.mean.tolist()
                if asked.augmented:
                    drawn = fn.reshape(fn.random.normal(shape=[3]), shape=[3, 1])
                    components = types.Constant(asked.jitter_matrix, device="cpu")
                    jitter = fn.reductions.sum(drawn * components, axes=[0])
                    offset = types.Constant(asked.mean, device="cpu") - jitter
                fused |= {"mean": offset, "dtype": types.FLOAT, "output_layout": "CHW"}
            else:
                fused |= {"dtype": types.UINT8, "output_layout": "HWC"}
            pipeline.set_outputs(fn.crop_mirror_normalize(images, **fused), digits)
        pipeline.build()

        def batches() -> Iterator[PeerBatch]:
            while True:
                out, digits = pipeline.run()
                images = from_dlpack(out.as_tensor())
                labels = [_label(np.asarray(digits.at(i))) for i in range(len(digits))]
                yield PeerBatch(images if asked.floats else nchw(images), torch.tensor(labels))

        yield batches()

    return opened()


def _label(stored: NDArray[Any]) -> int:
    """From the text of a member `cls`, or the number in a file of its own."""
    return int(bytes(stored) or b"-1") if stored.dtype == np.uint8 else int(stored)


def _written_as_npy(asked: Asked, folder: Path) -> tuple[list[str], list[str]]:
    """Each image as a file of NumPy, and each label; paths of both."""
    folder.mkdir(parents=True, exist_ok=True)
    images = [folder / f"{sample:08d}.npy" for sample in range(asked.samples)]
    labels = [folder / f"{sample:08d}-label.npy" for sample in range(asked.samples)]
    if not labels[-1].is_file():
        with closing(StoredFiles(asked)) as files:
            for sample, (image, label) in enumerate(zip(images, labels, strict=True)):
                np.save(image, ppm_pixels(memoryview(files.file(sample))))
                np.save(label, np.int64(files.labels[sample]))
    return [str(path) for path in images], [str(path) for path in labels]


def _dali_numpy(asked: Asked) -> Any:
    return _dali_batches(asked, lambda fn, _types, place: _from_npy(asked, fn, place))


def _dali_region(asked: Asked) -> Any:
    return _dali(asked, region=True)


@contextmanager
def _ffcv(asked: Asked) -> Iterator[Iterator[PeerBatch]]:
    loading, decoders, transforms = map(needed, ("ffcv.loader", "ffcv.fields.decoders", "ffcv.transforms"))
    path = asked.cache / f"{asked.shard_set.digest[:16]}-{asked.split}.beton"
    if not path.is_file():
        _write_beton(asked, path)
    size, ratio = (
        (asked.side, asked.side),
        (asked.side + 0.1) / asked.stored_side,
    )  # rounded down, or to the nearest
    image: list[Any] = [decoders.CenterCropRGBImageDecoder(size, ratio)]
    if asked.augmented:
        crop = decoders.RandomResizedCropRGBImageDecoder(size, scale=(ratio**2, ratio**2), ratio=(1.0, 1.0))
        image = [crop, transforms.RandomHorizontalFlip()]
    if asked.floats:
        image.append(transforms.NormalizeImage(asked.mean, np.ones(3, np.float32), np.float32))
    np.random.seed(asked.seed % 2**32)  # FFCV draws from NumPy's global generator
    loader = loading.Loader(
        str(path),
        batch_size=asked.batch_size,
        num_workers=asked.threads,
        os_cache=True,
        order=loading.OrderOption.RANDOM,
        seed=asked.seed,
        indices=np.tile(np.arange(asked.samples, dtype=np.uint64), _LAPS if asked.augmented else 1),
        drop_last=True,
        pipelines={
            "image": [*image, transforms.ToTensor(), transforms.ToTorchImage(channels_last=True)],
            "label": [needed("ffcv.fields.basics").IntDecoder(), transforms.ToTensor(), transforms.Squeeze()],
        },
    )

    def batches() -> Generator[PeerBatch, None, None]:
        while True:
            epoch = iter(loader)
            with closing(epoch):
                for images, labels in epoch:
                    yield PeerBatch(images, labels)

    with closing(batches()) as endless:
        yield endless


def _write_beton(asked: Asked, path: Path) -> None:
    """FFCV's file with the very bytes of our set: its writer would encode JPEGs anew, and change them."""
    fields = needed("ffcv.fields")
    modes = needed("ffcv.fields.rgb_image").IMAGE_MODES
    side = asked.stored_side

    class AsStored(fields.RGBImageField):  # type: ignore[misc, name-defined]
        def encode(self, destination: Any, image: NDArray[np.uint8], malloc: Any) -> None:
            destination["mode"] = modes["raw" if asked.raw else "jpg"]
            destination["height"] = destination["width"] = side
            destination["data_ptr"], storage = malloc(image.nbytes)
            storage[:] = image

    class Samples:
        def __len__(self) -> int:
            return asked.samples

        def __getitem__(self, sample: int) -> tuple[NDArray[np.uint8], int]:
            file = files.file(sample)
            image = ppm_pixels(memoryview(file)).reshape(-1) if asked.raw else np.frombuffer(file, np.uint8)
            return image, int(files.labels[sample])

    part = path.with_suffix(".part")
    # The writer knows the types of its fields by their very class.
    types = needed("ffcv.types").TYPE_ID_HANDLER
    number = next(number for number, field in types.items() if field is fields.RGBImageField)
    types[number] = AsStored
    try:
        with closing(StoredFiles(asked)) as files:
            writer = needed("ffcv.writer").DatasetWriter(
                str(part), {"image": AsStored(), "label": fields.IntField()}, num_workers=asked.threads
            )
            writer.from_indexed_dataset(Samples())
    finally:
        types[number] = fields.RGBImageField
    part.replace(path)


@contextmanager
def _spdl(asked: Asked) -> Iterator[Iterator[PeerBatch]]:
    io, pipelines = needed("spdl.io"), needed("spdl.pipeline")
    side, draws, files = asked.side, Draws(asked), StoredFiles(asked)

    def samples() -> Iterator[NDArray[np.int64]]:
        generator = np.random.default_rng(asked.seed)
        while True:
            order = generator.permutation(asked.samples)
            for start in range(0, len(order) - asked.batch_size + 1, asked.batch_size):
                yield order[start : start + asked.batch_size]

    def batch(samples: NDArray[np.int64]) -> PeerBatch:
        frames, offsets = [], []
        for sample in samples:
            drawn = draws()
            mirror = ",hflip" if drawn.mirror else ""
            wanted = f"format=pix_fmts=rgb24,crop={side}:{side}:{drawn.x}:{drawn.y}{mirror}"
            packets = io.demux_image(files.file(int(sample)))
            frames.append(io.decode_packets(packets, filter_desc=f"{wanted},format=pix_fmts=rgb24"))
            offsets.append(drawn.offset)
        images = nchw(torch.from_numpy(io.to_numpy(io.convert_frames(frames))))
        if asked.floats:
            offset = torch.from_numpy(np.stack(offsets))
            images = images.to(torch.float32, memory_format=torch.contiguous_format).sub_(offset[:, :, None, None])
        return PeerBatch(images, torch.from_numpy(files.labels[samples]))

    builder = pipelines.PipelineBuilder().add_source(samples()).pipe(batch, concurrency=asked.threads).add_sink(2)
    pipeline = builder.build(num_threads=asked.threads)
    with closing(files), pipeline.auto_stop():
        yield iter(pipeline.get_iterator())


NATIVE_PEERS = (
    Peer(
        name="dali",
        about="DALI on the cores: its webdataset reader with our indexes, decoders.image, one fused operator",
        lacks="a global shuffle (buffer of 1,024), exact epochs",
        modules=("nvidia.dali.fn", "nvidia.dali.types"),
        package=("nvidia-dali-cuda130", "nvidia-dali-cuda120"),
        run=_dali,
        exact=False,
    ),
    Peer(
        name="dali-region",
        about="the same with decoders.image_crop, which decodes the crop alone",
        lacks="a global shuffle (buffer of 1,024), exact epochs",
        modules=("nvidia.dali.fn", "nvidia.dali.types"),
        package=("nvidia-dali-cuda130", "nvidia-dali-cuda120"),
        run=_dali_region,
        exact=False,
        encodings=("jpeg",),
    ),
    Peer(
        name="dali-numpy",
        about="the same over its numpy reader, every image a file of its own: its fastest way to raw pixels",
        lacks="reading our tars",
        modules=("nvidia.dali.fn", "nvidia.dali.types"),
        package=("nvidia-dali-cuda130", "nvidia-dali-cuda120"),
        run=_dali_numpy,
        copies=True,
        encodings=("raw",),
    ),
    Peer(
        name="ffcv",
        about="FFCV over its own file of our JPEGs or pixels (os_cache), its decoder, flip and table of means",
        lacks="jitter; planes (float32 lies channels last); exact inverse DCT; batches to keep; reading our tars",
        modules=("ffcv.loader", "ffcv.writer", "ffcv.transforms"),
        package=("ffcv",),
        run=_ffcv,
        jitters=False,
        copies=True,
        tolerance=2.0,
    ),
    Peer(
        name="spdl",
        about="SPDL over our index: its FFmpeg decoder, crop and flip, a batch a thread, torch subtracts",
        lacks="libjpeg's pixels (FFmpeg's chroma is coarser: about a grey level in photographs)",
        modules=("spdl.pipeline", "spdl.io"),
        probe=lambda: needed("spdl.io.utils").get_ffmpeg_filters(),
        package=("spdl-io", "spdl"),
        run=_spdl,
        ahead_per_thread=1,
        encodings=("jpeg",),
        tolerance=6.0,
    ),
)
