"""The images of ILSVRC2010 and ILSVRC2012, in archives or extracted (see layout.py).

Names are compared by their last component, since archives differ in the folders above.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ....shards import ClassEntry, Split
from ..tar import Kind, Member, members
from .archive import Archive, opened, with_inner
from .devkit import Devkit, read_devkit
from .images import change_of
from .layout import EVAL_IMAGE, INNER_TAR, WNID, Layout, beside
from .listing import (
    BadSource,
    Listing,
    Refusal,
    add_files,
    bare_name,
    images_outside,
    label_of_path,
    no_images,
)
from .parts import members_in_parts
from .patches import apply_patches

OnFound = Callable[[int], object]

_EVAL_NAME = re.compile(r"ILSVRC\d{4}_(val|test)_")  # also where number or ending are wrong
_NO_NUMBER = "its name has no number of an image of"
TELL_EVERY = 500  # members of an archive
_EVALUATION = (Split.VAL, Split.TEST)
_TRUTH_WORD = {Split.VAL: "validation", Split.TEST: "test"}


def list_ilsvrc(
    source: Path,
    layout: Layout,
    splits: tuple[Split, ...],
    *,
    unlabelled: bool,
    classes: tuple[ClassEntry, ...] | None,
    on_found: OnFound,
) -> Listing:
    """List the images of an edition.

    Args:
        classes: of the shard set that statistics come from, where train is not packed; None: from train
        itself.

    Raises:
        BadArchive: an archive is cut or damaged.
        BadSource: no classes, no ground truth, or the development kit does not fit the images.
    """
    if len(layout.years) > 1:
        raise BadSource(
            f"{source} holds more than one edition: {', '.join(sorted(layout.years))}",
            why="their classes and ids differ",
            remedy="put each edition into a folder of its own",
        )
    archives = any(path.is_file() for path in layout.parts.values())
    listing = Listing(f"ILSVRC{''.join(layout.years)} {'archives' if archives else 'extracted'}")
    kit = read_devkit(source, layout.years)
    if kit.passed_over:
        listing.remarks.append(f"left alone, being of another edition: {', '.join(kit.passed_over)}")
    lister = _Lister(source, layout.parts, listing, kit, unlabelled, on_found)
    if Split.TRAIN in splits:
        lister.list_train(layout.parts[Split.TRAIN])
    else:
        assert classes is not None
        listing.classes = classes
    lister.labels = {entry.synset: label for label, entry in enumerate(listing.classes)}
    for split in _EVALUATION:
        if split in splits:
            lister.list_evaluation(split, layout.parts[split])
            lister.tell()
    if layout.patches is not None:
        apply_patches(listing, layout.patches, label_of_path(source, layout.patches))
    if others := beside(source, layout):
        listing.remarks.append(f"left alone, being no part of the edition: images in {', '.join(others)}")
    return listing


@dataclass(slots=True)
class _Lister:
    """Fills one listing; every method adds one part of the edition."""

    source: Path
    parts: dict[Split, Path]
    listing: Listing
    kit: Devkit
    unlabelled: bool
    on_found: OnFound
    labels: dict[str, int] = field(default_factory=dict)  # wnid to label
    told: int = 0  # images found, as on_found knows

    def list_train(self, part: Path) -> None:
        images = self.listing.start_split(Split.TRAIN)
        wnids: dict[str, None] = {}  # in source order; labels are given when all are known
        for wnid, add in self._train_classes(part):
            if wnid in wnids:
                raise BadSource(f"{self._label(part)} holds {wnid} twice", remedy="keep one of the two")
            before = self._found()
            add(len(wnids))
            wnids[wnid] = None
            if self._found() == before:
                raise no_images(f"{wnid} of {self._label(part)}")
            self.tell()
        self.listing.classes = tuple(self._class_entry(wnid, part) for wnid in sorted(wnids))
        if not wnids:
            raise BadSource(
                f"{self._label(part)} holds no class: no archive or folder named like n01440764",
                why="there is nothing to train on",
                remedy="download the training archive again, or choose other splits with --splits",
            )
        label_of = {wnid: label for label, wnid in enumerate(sorted(wnids))}
        labels = [label_of[wnid] for wnid in wnids]
        for position, place in enumerate(images.label):
            images.label[position] = labels[place]

    def _train_classes(self, part: Path) -> Iterator[tuple[str, Callable[[int], None]]]:
        """(wnid, function that adds its images under a label) for every class of train."""
        if part.is_file():
            with opened(part) as archive:
                outer = members(archive.read_at, where=self._label(part), end=archive.size)
                for member, inside in with_inner(archive, outer, lambda member: self._inner_label(part, member)):
                    where = self._inner_label(part, member)
                    if where is not None:
                        wnid = where.rpartition("/")[2].removesuffix(".tar")
                        yield wnid, self._adder_of_tar(archive, part, inside, where)
                    elif member.kind is not Kind.FOLDER:
                        reason = "not the archive of a class (nNNNNNNNN.tar)"
                        self._refuse(Split.TRAIN, self._label(part), member.name, reason)
            return
        for path in sorted(part.iterdir()):
            found = INNER_TAR.fullmatch(path.name)
            if found is not None and path.is_file():
                with opened(path) as archive:
                    inside = members(archive.read_at, where=self._label(path), end=archive.size)
                    yield found[1], self._adder_of_tar(archive, path, inside, self._label(path))
            elif WNID.fullmatch(path.name) and path.is_dir():
                yield path.name, self._adder_of_folder(path)
        self._refuse_outside_classes(Split.TRAIN, part)

    def _inner_label(self, part: Path, member: Member) -> str | None:
        """What to call the archive of a class, "OUTER.tar/nNNNNNNNN.tar"; None where the member is none."""
        found = INNER_TAR.fullmatch(bare_name(member.name) or "")
        return f"{self._label(part)}/{found[0]}" if member.kind is Kind.FILE and found is not None else None

    def _adder_of_tar(
        self, archive: Archive, path: Path, inside: Iterable[Member], where: str
    ) -> Callable[[int], None]:
        def add(label: int) -> None:
            container = self.listing.add_container(path, where)
            self._add_members(Split.TRAIN, archive, container, inside, where, lambda _: label)

        return add

    def _adder_of_folder(self, folder: Path) -> Callable[[int], None]:
        def add(label: int) -> None:
            container = self.listing.add_container(folder, self._label(folder), is_folder=True)
            add_files(self.listing, Split.TRAIN, container, folder, label=label)

        return add

    def _class_entry(self, wnid: str, part: Path) -> ClassEntry:
        if not self.kit.synsets:  # train alone needs no development kit
            return ClassEntry(wnid, wnid, None)
        synset = self.kit.synsets.get(wnid)
        if synset is None or not synset.is_leaf:
            raise BadSource(
                f"{self._label(part)} holds {wnid}, which is {'no leaf' if synset else 'not'} in {self.kit.where}",
                why="a class is a leaf of the development kit's synsets",
                remedy="take the development kit of this edition, or remove what is no class",
            )
        return synset.class_entry()

    def list_evaluation(self, split: Split, part: Path) -> None:
        images = self.listing.start_split(split)
        if part.is_file():
            label_of = self._label_by_number(split)
            container = self.listing.add_container(part, self._label(part))
            with opened(part) as archive:
                found = members_in_parts(archive, self._label(part))
                self._add_members(split, archive, container, found, self._label(part), label_of)
            return
        folder = part / split if (part / split).is_dir() else part
        by_class = [path for path in sorted(folder.iterdir()) if WNID.fullmatch(path.name) and path.is_dir()]
        if folder.name == split and by_class:
            for path in by_class:
                container = self.listing.add_container(path, self._label(path), is_folder=True)
                label = self._known_label(path.name, f"{self._label(path)}/ is a class of {split}")
                add_files(self.listing, split, container, path, label=label)
            self._refuse_outside_classes(split, folder)
            return
        label_of = self._label_by_number(split)
        container = self.listing.add_container(folder, self._label(folder), is_folder=True)
        for name in self._outside_classes(split, folder):
            number_label = label_of(name)
            if number_label is None:
                self._refuse(split, self._label(folder), name, f"{_NO_NUMBER} {split}")
            elif not (folder / name).is_file():
                self._refuse(split, self._label(folder), name, "no regular file")
            else:
                status = (folder / name).stat()
                images.add(name, container, 0, status.st_size, number_label, change_of(status))

    def _outside_classes(self, split: Split, folder: Path) -> Iterator[str]:
        """Names of the split's images that lie in its folder, but in no folder of a synset."""
        sharing = [other for other in Split if self.parts.get(other) == folder] or [split]
        classes = [path.name for path in folder.iterdir() if WNID.fullmatch(path.name)]
        for name in images_outside(folder, classes, deep=folder != self.source):
            named = _EVAL_NAME.match(name)
            if split == (named[1] if named is not None and named[1] in sharing else sharing[-1]):
                yield name

    def _refuse_outside_classes(self, split: Split, folder: Path) -> None:
        for name in self._outside_classes(split, folder):
            self._refuse(split, self._label(folder), name, "in no folder of a class")

    def _label_by_number(self, split: Split) -> Callable[[str], int | None]:
        """From an image's name to its label by the number in it; None where it has none."""
        truth = self.kit.ground_truth.get(split)
        images = self.listing.splits[split]
        if truth is None:
            if not self.unlabelled:
                raise BadSource(
                    f"{split} has no ground truth: no ILSVRC*_{_TRUTH_WORD[split]}_ground_truth.txt",
                    where=self._kit_places(),
                    why=f"without it nothing says what the images of {split} show",
                    remedy=f"put the file there, leave {split} out with --splits, or take it --unlabelled",
                )
            images.labelled = False
            return lambda _: -1
        if not self.kit.synsets:
            raise BadSource(
                f"{split} has a ground truth, but there is no meta.mat to tell what its ids mean",
                where=self._kit_places(),
                why="the ids are the development kit's own and follow no order",
                remedy="put the development kit's archive into the source folder",
            )
        labels: dict[int, int] = {}

        def label_of(name: str) -> int | None:
            image = EVAL_IMAGE.fullmatch(name)
            if image is None or image["split"] != split:
                return None
            number = int(image["number"])
            if not 1 <= number <= len(truth):
                raise BadSource(
                    f"{name} is beyond the {len(truth):,} lines of {split}'s ground truth",
                    why="line N is about image N, so the two do not belong together",
                    remedy="take the ground truth of this edition",
                )
            devkit_id = truth[number - 1]
            if devkit_id not in labels:
                synset = self.kit.synset_of(devkit_id)
                what = f"line {number} of {split}'s ground truth says {devkit_id}"
                if synset is None:
                    raise BadSource(
                        f"{what}, an id that {self.kit.where} does not have",
                        why="the label of this image would be a guess",
                        remedy="take ground truth and development kit of one edition",
                    )
                labels[devkit_id] = self._known_label(synset.wnid, what)
            return labels[devkit_id]

        return label_of

    def _kit_places(self) -> str:
        others = f"; of another edition: {', '.join(self.kit.passed_over)}" if self.kit.passed_over else ""
        return f"looked in {self.source}, its data/ and the development kit{others}"

    def _known_label(self, wnid: str, what: str) -> int:
        if wnid not in self.labels:
            raise BadSource(
                f"{what} ({wnid}), a class that train lacks",
                why="the network has no output for it",
                remedy="add its training images, or leave the split out with --splits",
            )
        return self.labels[wnid]

    def _add_members(
        self,
        split: Split,
        archive: Archive,
        container: int,
        found: Iterable[Member],
        where: str,
        label_of: Callable[[str], int | None],
    ) -> None:
        images = self.listing.splits[split]
        seen: dict[str, Member] = {}
        for number, member in enumerate(found, 1):
            if number % TELL_EVERY == 0:
                self.tell()
            if member.kind is Kind.FOLDER:
                continue
            name = bare_name(member.name)
            if name is None:
                self._refuse(split, where, member.name, "unsafe name: it reaches outside of the archive")
            elif member.kind is not Kind.FILE:
                self._refuse(split, where, member.name, f"a {member.kind}, no regular file")
            elif name in seen:
                first = seen[name]
                same = first.size == member.size and _bytes_of(archive, first) == _bytes_of(archive, member)
                reason = f"duplicate: the name comes twice, with {'the same' if same else 'other'} bytes"
                self._refuse(split, where, member.name, reason)
            elif (label := label_of(name)) is None:
                self._refuse(split, where, member.name, f"{_NO_NUMBER} {split}")
            else:
                seen[name] = member
                images.add(name, container, member.offset, member.size, label)

    def _found(self) -> int:
        return sum(map(len, self.listing.splits.values())) + len(self.listing.refusals)

    def tell(self) -> None:
        """Tell of the images found since it was last told; inside an archive too, which may hold all of them."""
        found = self._found()
        self.on_found(found - self.told)
        self.told = found

    def _refuse(self, split: Split, where: str, name: str, reason: str) -> None:
        self.listing.refusals.append(Refusal(split.value, where, name, reason))

    def _label(self, path: Path) -> str:
        return label_of_path(self.source, path)


def _bytes_of(archive: Archive, member: Member, limit: int = 1 << 26) -> bytes:
    return archive.read_at(member.offset, min(member.size, limit))
