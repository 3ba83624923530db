"""One shard, from plan to disk: read in source order, decode, resize, encode, sum, write in plan order.

A pure function of the plan and the source, so that any process may do it, and do it again with the same
bytes. Beside the shard it leaves a record (what was packed and refused) and the sums of its pixels, under
`.build/`, from which the coordinator makes the set.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from ...shards import (
    NO_LABEL,
    ImageFormat,
    Sample,
    SampleRow,
    ShardEntry,
    ShardName,
    ShardWriter,
    Split,
    appearing_whole,
    open_regular,
    parse_json,
    unique_part_suffix,
)
from .decode import BadImage, decode
from .disk import writing
from .image import central_square, encoded
from .plan import PlannedSample, ShardPlan
from .reading import SourceReader
from .sources import Container, Refusal
from .statistics import SquareSums

SPOOL_BYTES = 160_000_000  # of a worker's memory: a shard of the default size stays there


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """What became of one planned shard."""

    name: ShardName
    entry: ShardEntry | None  # None: no sample was left, so nothing was written
    rows: tuple[SampleRow, ...]
    refusals: tuple[Refusal, ...]
    sums_sha256: str | None  # of the file beside it, for train

    def save(self, folder: Path) -> None:
        fields = {
            "entry": asdict(self.entry) if self.entry else None,
            "rows": [str(row) for row in self.rows],
            "refusals": [asdict(refusal) for refusal in self.refusals],
            "sums_sha256": self.sums_sha256,
        }
        with appearing_whole(record_path(folder, self.name), unique=True) as file:
            file.write(json.dumps({"record": fields, "sha256": _digest(fields)}).encode("ascii"))

    @classmethod
    def load(cls, folder: Path, name: ShardName) -> ShardRecord:
        """Read what `save` wrote.

        Raises:
            ValueError, KeyError, TypeError: it is damaged.
        """
        content = parse_json(record_path(folder, name).read_bytes())
        fields = content["record"]
        if content["sha256"] != _digest(fields):
            raise ValueError(f"the record of {name} is not as it was written")
        return cls(
            name=name,
            entry=ShardEntry(**fields["entry"]) if fields["entry"] else None,
            rows=tuple(map(SampleRow.parse, fields["rows"])),
            refusals=tuple(Refusal(**refusal) for refusal in fields["refusals"]),
            sums_sha256=fields["sums_sha256"],
        )


def file_sha256(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(fields: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields).encode("ascii")).hexdigest()


def record_path(folder: Path, name: ShardName) -> Path:
    return folder / str(name).replace(".tar", ".json")


def sums_path(folder: Path, name: ShardName) -> Path:
    return folder / str(name).replace(".tar", ".npz")


def source_order(samples: tuple[PlannedSample, ...]) -> list[PlannedSample]:
    """The samples of a shard in the order in which they are read."""
    return sorted(samples, key=lambda sample: (sample.container, sample.offset, sample.name))


def pack_shard(
    plan: ShardPlan,
    containers: list[Container],
    image_format: ImageFormat,
    folder: Path,
    *,
    on_image: Callable[[Refusal | None], None],
) -> None:
    """Pack one shard into `folder`, with its record and, for train, the sums of its pixels.

    Args:
        on_image: called after each source image, with its refusal where it is not packed.

    Raises:
        BadSource: the source is not as it was listed.
        AlexshardError: the shard cannot be written.
    """
    split = plan.name.split
    sums = SquareSums(image_format.side) if split is Split.TRAIN else None
    refusals: dict[str, Refusal] = {}
    with (
        writing(str(plan.name), folder),
        tempfile.SpooledTemporaryFile(SPOOL_BYTES, prefix=_spool_prefix(plan.name), dir=str(folder)) as file,
        SourceReader(containers) as source,
    ):
        ready = _Spool(file)
        for sample, read in source.read_all(source_order(plan.samples)):
            try:
                found = decode(read(), side=None if plan.exact else image_format.side)
            except BadImage as bad:
                label = containers[sample.container].label
                refusals[sample.key] = Refusal(split.value, label, sample.name, bad.what)
            else:
                square = central_square(
                    found.pixels_HWC,
                    image_format.side,
                    size=(found.width, found.height),
                    reduction=found.reduction,
                )
                if sums is not None:
                    sums.add(square)
                notes = ("patched", *found.notes) if sample.patched else found.notes
                ready.put(sample.key, encoded(square, image_format), ",".join(notes))
            on_image(refusals.get(sample.key))
        ordered = tuple(refusals[sample.key] for sample in plan.samples if sample.key in refusals)
        entry, rows = _write(plan, ready, image_format, folder) if ready.places else (None, ())
        if sums is not None:
            sums.total().save(sums_path(folder, plan.name))
        sums_sha256 = None if sums is None else file_sha256(sums_path(folder, plan.name))
        ShardRecord(plan.name, entry, rows, ordered, sums_sha256).save(folder)


def _spool_prefix(name: ShardName) -> str:
    return f"{name}{unique_part_suffix()}-"  # where a disk must give it a name for a moment, it is known as ours


@dataclass(slots=True)
class _Spool:
    """Encoded images until they are written in plan order."""

    file: IO[bytes]  # in memory, beyond SPOOL_BYTES on the disk without a name: nothing remains if we are killed
    places: dict[str, tuple[int, int, str]] = field(default_factory=dict)  # key to offset, bytes and notes

    def put(self, key: str, image: bytes, note: str) -> None:
        self.places[key] = self.file.tell(), len(image), note
        self.file.write(image)

    def take(self, key: str) -> tuple[bytes, str]:
        offset, size, note = self.places[key]
        self.file.seek(offset)
        return self.file.read(size), note


def _write(
    plan: ShardPlan, ready: _Spool, image_format: ImageFormat, folder: Path
) -> tuple[ShardEntry, tuple[SampleRow, ...]]:
    rows = []
    with ShardWriter(folder, plan.name) as writer:
        for sample in plan.samples:
            if sample.key in ready.places:
                image, note = ready.take(sample.key)
                label = sample.label if plan.labelled else None
                crc32 = writer.write(Sample(sample.key, label, image, image_format.extension))
                rows.append(
                    SampleRow(
                        key=sample.key,
                        label=NO_LABEL if label is None else label,
                        split=plan.name.split.value,
                        shard=str(plan.name),
                        original=sample.name,
                        note=note,
                        crc32=crc32,
                    )
                )
    return writer.entry, tuple(rows)
