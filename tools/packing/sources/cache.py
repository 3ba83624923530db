"""The listing, kept beside the output: a source that has not changed is not looked through again.

A file of a SHA-256 and NumPy's columns. With the listing goes what it hangs on: how the source was to be listed,
the code that listed it, and the state of every folder and of every file that is no image. An image whose bytes are
exchanged in its folder changes none of these; `reading.py` notices its size or time.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from ....shards import ClassEntry, Split, appearing_whole
from .images import Images
from .listing import Container, Listing, Refusal, is_image_name, scan

State = tuple[str, int, int]  # path relative to the source, bytes (a folder: -1), time of change (ns)
# What may hold parts of a source or classes; below anything else a link leads elsewhere, perhaps to the root.
_PART = re.compile(r"\.|train|val|test|data|patch_images|ILSVRC.*|.*devkit.*", re.IGNORECASE)
_SUM_BYTES = hashlib.sha256().digest_size


def save_listing(listing: Listing, path: Path) -> None:
    """Keep a listing that came from `cached_listing`; the file is there whole or not at all."""
    source = listing.hangs_on["settings"]["source"]
    facts = {
        "kind": listing.kind,
        "classes": [asdict(entry) for entry in listing.classes],
        "containers": [
            [_inner(container.path, source), container.label, container.is_folder, container.state]
            for container in listing.containers
        ],
        "refusals": [asdict(refusal) for refusal in listing.refusals],
        "remarks": listing.remarks,
        "hangs_on": listing.hangs_on,
        "splits": list(listing.splits),
    }
    arrays = {"facts": np.frombuffer(json.dumps(facts).encode("ascii"), np.uint8)}
    for split, images in listing.splits.items():
        arrays |= {f"{split}.{name}": column for name, column in images.to_arrays().items()}  # type: ignore[misc]
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    with appearing_whole(path) as file:
        file.write(hashlib.sha256(buffer.getbuffer()).digest())
        file.write(buffer.getbuffer())


def load_listing(path: Path, source: Path) -> Listing | None:
    """The listing of a source that a file keeps; None where there is none, or not as it was written."""
    try:
        data = memoryview(path.read_bytes())
    except OSError:
        return None
    if hashlib.sha256(data[_SUM_BYTES:]).digest() != data[:_SUM_BYTES]:
        return None
    # The sum fits, so all that follows is as `save_listing` wrote it.
    with np.load(io.BytesIO(data[_SUM_BYTES:]), allow_pickle=False) as arrays:
        facts = json.loads(arrays["facts"].tobytes())
        if facts["hangs_on"]["code"] != _code():
            return None  # of another version, which may have kept other things
        listing = Listing(
            facts["kind"],
            tuple(ClassEntry(**entry) for entry in facts["classes"]),
            [
                Container(source / inner, label, is_folder, tuple(state))
                for inner, label, is_folder, state in facts["containers"]
            ],
            {},
            [Refusal(**refusal) for refusal in facts["refusals"]],
            facts["remarks"],
            facts["hangs_on"],
        )
        for split in map(Split, facts["splits"]):
            names = [name for name in arrays.files if name.startswith(f"{split}.")]
            listing.splits[split] = Images.from_arrays({name.partition(".")[2]: arrays[name] for name in names})
    return listing


def _inner(path: Path, source: str) -> str:
    """The path of a container below the source."""
    return str(path.absolute()).removeprefix(source).lstrip("/") or "."


def settings_of(
    source: Path, splits: Sequence[Split] | None, unlabelled: bool, classes: tuple[ClassEntry, ...] | None
) -> dict[str, Any]:
    """What was asked of a listing."""
    return {
        "source": str(source.absolute()),
        "splits": None if splits is None else sorted(splits),
        "unlabelled": unlabelled,
        "classes": None if classes is None else [asdict(entry) for entry in classes],
    }


def hangs_on(source: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Everything that a listing of the source depends on; to be asked before it is listed."""
    return {"code": _code(), "settings": settings, "states": [list(state) for state in _states(source)]}


def still_holds(listing: Listing, source: Path, settings: dict[str, Any]) -> bool:
    """Whether a listing that was kept says what a new one would."""
    known = listing.hangs_on
    return known["settings"] == settings and all(
        _state(source / name, name) == (name, size, changed) for name, size, changed in known["states"]
    )


def _states(source: Path) -> Iterator[State]:
    """Of every folder and every file that is no image; hidden names left out.

    A link to a folder is followed where a listing follows it: where it may be a part of the source or a class.
    """
    seen: set[object] = set()
    folders = [(source, ".")]
    while folders:
        folder, name = folders.pop()
        real = (folder.stat().st_dev, folder.stat().st_ino) if isinstance(folder, Path) else name
        if real in seen:  # a loop of links
            continue
        seen.add(real)
        yield _state(folder, name)
        follow = all(_PART.fullmatch(part) for part in name.split("/"))
        for entry in scan(folder):
            inner = entry.name if name == "." else f"{name}/{entry.name}"
            if entry.is_dir(follow_symlinks=follow) and not entry.name.startswith("."):
                folders.append((folder / entry.name, inner))
            elif not entry.name.startswith(".") and not is_image_name(entry.name):
                yield _state(folder / entry.name, inner)


def _state(path: Path, name: str) -> State:
    try:
        status = path.stat()
    except OSError:
        return name, -2, 0  # a dangling link, or gone
    return name, -1 if path.is_dir() else status.st_size, status.st_mtime_ns


@cache
def _code() -> str:
    """The code that lists, in one number, so that nobody has to raise one by hand."""
    here = files(__package__)
    modules = sorted((file for file in here.iterdir() if file.name.endswith(".py")), key=lambda file: file.name)
    tar = files(__package__.rpartition(".")[0]) / "tar.py"
    return hashlib.sha256(b"".join(file.read_bytes() for file in (*modules, tar))).hexdigest()
