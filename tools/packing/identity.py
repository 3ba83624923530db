"""What identifies a build: an unfinished one is continued by the same, and by nothing else.

Facts decide the bytes of the set: what the source holds, how it is cut, stored and ordered, and by which code.
They are kept one by one, so that a difference can be named. States (size and time of change of archives, times of
change of loose images) tell what was exchanged from what was listed. They are no facts: the same archives may lie
elsewhere tomorrow.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ...shards import AlexshardError, ClassEntry, ImageFormat, Manifest, Split, appearing_whole, parse_json
from .sources import Container, Images, Listing
from .sources.images import change_of

_SHOWN_DIGITS = 12  # of a digest, in a message
_SHOWN_WORDS = 40  # characters of a class's words, in a message
_DIGEST = ", digest "  # in a fact, before what a person cannot compare


@dataclass(frozen=True, slots=True)
class Identity:
    """The facts and states of a build, as plan.json keeps them."""

    facts: dict[str, Any]  # name to a number or words
    states: dict[str, list[int] | str]  # archive to bytes and time of change (ns); split to a digest of such times

    @property
    def digest(self) -> str:
        """Of the facts alone."""
        return hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode("ascii")).hexdigest()

    def differences(self, earlier: Identity) -> list[str]:
        """What an earlier build was about and this one is not, one line for each; settings first, digests last."""
        lines = _differences(earlier.facts, self.facts, _shown)
        lines.sort(key=lambda line: _DIGEST in line)
        if not lines:
            lines = _differences(earlier.states, self.states, _shown_state)
        return lines

    def save(self, path: Path) -> None:
        with appearing_whole(path) as file:
            file.write(json.dumps(asdict(self), indent=1).encode("ascii"))

    @classmethod
    def load(cls, path: Path) -> Identity:
        """Read what `save` wrote.

        Raises:
            AlexshardError: it is damaged.
        """
        try:
            content = parse_json(path.read_bytes())
            return cls(dict(content["facts"]), dict(content["states"]))
        except (ValueError, KeyError, TypeError) as error:
            raise AlexshardError(
                f"the plan of the unfinished build is damaged: {error}",
                where=str(path),
                why="nobody can tell which build its shards belong to",
                remedy="--restart discards them and starts afresh",
            ) from None


def identity_of(
    listing: Listing, image: ImageFormat, build_facts: Mapping[str, Any], statistics_from: str | None
) -> Identity:
    """The identity of the build of a listing.

    Args:
        build_facts: what the manifest will say of the build.
        statistics_from: digest of the set that the statistics come from.
    """
    classes = hashlib.sha256(json.dumps([asdict(entry) for entry in listing.classes]).encode("ascii")).hexdigest()
    facts: dict[str, Any] = {
        "splits": ", ".join(listing.splits),
        "classes": f"{len(listing.classes):,}{_DIGEST}{classes}",
        **{f"images of {split}": _images_fact(listing, split) for split in listing.splits},
        **_settings(image, statistics_from, build_facts),
    }
    archives = {_archive(held): list(held.state) for held in listing.containers if not held.is_folder}
    return Identity(facts, {**archives, **dict(_times_of_change(listing))})


def _times_of_change(listing: Listing) -> Iterator[tuple[str, str]]:
    """Of the images that are files of their own, one digest for each split that has some."""
    for split, images in listing.splits.items():
        if any(listing.containers[held].is_folder for held in set(images.container)):
            digest = hashlib.sha256(images.changed.tobytes()).hexdigest()
            yield f"images of {split}", f"times of change, digest {digest}"


def _settings(image: ImageFormat, statistics_from: str | None, build_facts: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **dict(_flat("image", asdict(image))),
        "statistics_from": statistics_from,
        **dict(_flat("", build_facts)),
    }


def differences_to_set(manifest: Manifest, now: Identity, classes: tuple[ClassEntry, ...]) -> list[str]:
    """What a finished set is about and a build is not, one line for each; empty: nothing, as far as one can tell.

    Args:
        classes: of the build.
    """
    told = manifest.statistics.source
    facts = {name: value for name, value in manifest.build.items() if name != "plan"}
    earlier = {
        "splits": ", ".join(manifest.splits),
        **_settings(manifest.image, None if told == Split.TRAIN else told, facts),
        **{f"images of {name}": _count(entry.found, entry.labelled) for name, entry in manifest.splits.items()},
    }
    counts = {f"images of {name}" for name in Split}
    known = {
        name: value.partition(_DIGEST)[0] if name in counts else value
        for name, value in now.facts.items()
        if name != "classes"
    }
    lines = _differences(earlier, known, _shown)
    if manifest.classes != classes:
        lines.append(_class_difference(manifest.classes, classes))
    if not lines and manifest.build.get("plan", now.digest) != now.digest:
        lines.append("names, sizes, labels or places of the images")
    return lines


def _class_difference(earlier: tuple[ClassEntry, ...], now: tuple[ClassEntry, ...]) -> str:
    was, is_now = next(pair for pair in zip_longest(earlier, now) if pair[0] != pair[1])
    if was and is_now and was.synset == is_now.synset:
        first = " -> ".join(
            f"{each.synset} (devkit id {each.devkit_id}, {each.words[:_SHOWN_WORDS]})" for each in (was, is_now)
        )
    else:
        first = " -> ".join(each.synset if each else "none" for each in (was, is_now))
    return f"classes: {len(earlier):,} -> {len(now):,}, the first to differ: {first}"


def _archive(container: Container) -> str:
    """What to call the file that a container lies in: of OUTER.tar/INNER.tar, OUTER.tar."""
    name = str(container.path).rpartition("/")[2]
    before, found, _ = container.label.partition(name)
    return before + found


def changed_since(listing: Listing) -> str | None:
    """The first archive, or image of a store, that is another one than when it was listed, with what is different.

    Images on a disk were looked at when they were read.
    """
    # A thousand inner tars lie in one archive.
    for container in {container.path: container for container in listing.containers}.values():
        if not container.is_folder:
            try:
                state = Container.state_of(container.path)
            except OSError as error:
                return f"{container.path}: {error.strerror or error}"
            if tuple(state) != tuple(container.state):
                return f"{container.path}: {_shown_state(list(container.state))} -> {_shown_state(list(state))}"
    return next(_changed_in_store(listing), None)


def _changed_in_store(listing: Listing) -> Iterator[str]:
    """The images of folders in a store that are others than those listed: reading them tells no times."""
    places: dict[int, Any] = {
        number: held.path
        for number, held in enumerate(listing.containers)
        if held.is_folder and not isinstance(held.path, Path)
    }
    if places:
        store = next(iter(places.values())).store.anew()
        for images in listing.splits.values():
            for name, held, changed in zip(images.names, images.container, images.changed, strict=True):
                if held in places:
                    image = type(places[held])(store, places[held].inner) / name
                    if not image.is_file() or change_of(image.stat()) != changed:
                        yield f"{image}: another image than was listed"


def _images_fact(listing: Listing, split: Split) -> str:
    images = listing.splits[split]
    refusals = [asdict(refusal) for refusal in listing.refusals if refusal.split == split]
    digest = _images_digest(images, listing.containers)
    digest.update(json.dumps(refusals).encode("ascii"))
    return f"{_count(listing.found(split), images.labelled)}{_DIGEST}{digest.hexdigest()}"


def _count(found: int, labelled: bool) -> str:
    return f"{found:,}{'' if labelled else ' unlabelled'}"


def _images_digest(images: Images, containers: list[Container]) -> Any:
    digest = hashlib.sha256(json.dumps([container.label for container in containers]).encode("ascii"))
    for name in images.names:
        digest.update(name.encode("utf-8", "surrogateescape") + b"\0")
    for column in (images.container, images.offset, images.size, images.label):
        digest.update(column.tobytes())
    digest.update(json.dumps(sorted(images.patched)).encode("ascii"))
    return digest


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(f"{name}.{key}" if name else key, item)
    else:
        yield name, value


def _differences(earlier: dict[str, Any], now: dict[str, Any], shown: Any) -> list[str]:
    return [
        f"{name}: {shown(earlier.get(name))} -> {shown(now.get(name))}"
        for name in {**earlier, **now}
        if earlier.get(name) != now.get(name)
    ]


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    words, digest, letters = str(value).partition("digest ")
    return words + digest + letters[:_SHOWN_DIGITS]


def _shown_state(state: list[int] | str | None) -> str:
    if state is None:
        return "not there"
    if isinstance(state, str):
        return _shown(state)
    try:
        when = f"{datetime.fromtimestamp(state[1] / 1e9, UTC):%Y-%m-%d %H:%M:%S.%f} UTC"
    except (ValueError, OverflowError, OSError):
        when = f"version {state[1]:x}"  # what a store tells need not be a time
    return f"{state[0]:,} bytes of {when}"
