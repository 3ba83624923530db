"""`alexshard verify`: the steps of it, and what it tells."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..shards import (
    AlexshardError,
    BadManifest,
    Manifest,
    Problem,
    ShardSet,
    byte_size,
    find_shard_set,
    load_mended,
    verify_shard_set,
)
from .terminal import Progress


@dataclass(frozen=True, slots=True)
class Verified:
    """What came of it."""

    path: Path
    manifest: Manifest
    problems: list[Problem]  # that are there now
    deep: bool  # whether every image was decoded
    found: list[Problem] | None = None  # before the repair, if one was asked for
    repaired: tuple[str, ...] = ()  # names of files that were made again

    @property
    def samples(self) -> int:
        return sum(split.samples for split in self.manifest.splits.values())

    @property
    def shard_bytes(self) -> int:
        return sum(shard.bytes for split in self.manifest.splits.values() for shard in split.shards)


def verified(folder: Path, *, deep: bool, source: str | None) -> Verified:
    """Look, repair if there is a source, look again, and read deeply what is sound.

    Raises:
        NoShardSet, BadManifest: nobody knows what the bytes should be.
        AlexshardError: a repair cannot be made; nothing was changed then.
    """
    path = find_shard_set(folder)
    try:
        manifest, _ = load_mended(path)
    except BadManifest as error:
        if source is None:
            raise
        raise _beyond_repair(error, path, source) from None
    problems = _surface(path, manifest)
    found, repaired = None, []
    if source is not None:
        found = problems
        if problems:
            repaired = _repaired(path, source, problems)
        else:
            from .packing.repair import discard_leftovers

            discard_leftovers(path)
        if repaired:
            problems = _surface(path, manifest)
    if deep and not problems:  # what is broken on the surface would only be told again
        from .deep_verify import deep_verify

        samples = sum(split.samples for split in manifest.splits.values())
        with Progress("decode", samples, "images") as progress:
            problems = deep_verify(ShardSet.open(path), on_samples=progress.advance)
        return Verified(path, manifest, problems, True, found, tuple(repaired))
    return Verified(path, manifest, problems, False, found, tuple(repaired))


def _surface(path: Path, manifest: Manifest) -> list[Problem]:
    sizes = {shard.name: shard.bytes for split in manifest.splits.values() for shard in split.shards}
    done = 0
    with Progress("verify", _megabytes(sum(sizes.values())), "MB") as progress:

        def count(name: str, size: int) -> None:
            nonlocal done
            if name in sizes:
                done += size
                progress.advance(_megabytes(done) - progress.done, note=name)

        return verify_shard_set(path, on_file=count)


def _megabytes(size: int) -> int:
    return -(-size // 1_000_000)


def _repaired(path: Path, source: str, problems: list[Problem]) -> list[str]:
    from . import build_report, packing

    place = build_report.source_named(source)
    with Progress("look", None, "images") as progress:
        plan = packing.plan_repair(path, place, problems, on_found=progress.advance)
    with Progress("repair", plan.images, "images") as progress:
        return packing.repair(plan, workers=packing.default_workers(), on_progress=progress.advance)


def _beyond_repair(error: BadManifest, path: Path, source: str) -> AlexshardError:
    return BadManifest(
        error.what,
        where=error.where,
        why="the manifest alone says what every byte was, and more than one bit of it is wrong",
        remedy=f"restore it from a copy of {path.name}; else alexshard build {source} --out ANOTHER-FOLDER, with "
        "the options this set was built with",
    )


def report(verified: Verified) -> dict[str, Any]:
    """For `--json`."""
    about: dict[str, Any] = {
        "path": str(verified.path),
        "digest": verified.manifest.digest,
        "samples": verified.samples,
        "deep": verified.deep,
        "sound": not verified.problems,
        "problems": [asdict(problem) for problem in verified.problems],
    }
    if verified.found is not None:
        about |= {"repaired": list(verified.repaired), "found": [asdict(problem) for problem in verified.found]}
    return about


def text(verified: Verified) -> str:
    """For stdout: what was repaired, then what is wrong, or that nothing is."""
    lines = [f"repaired {name}" for name in verified.repaired]
    if verified.problems:
        lines += map(str, verified.problems)
    else:
        how = "every image decoded" if verified.deep else "every byte as promised"
        size = byte_size(verified.shard_bytes)
        lines.append(f"{verified.path}: sound; {verified.samples:,} samples, {size}, {how}")
    return "\n".join(lines)


def error_text(verified: Verified) -> str:
    """For stderr, where problems are left."""
    count = len(verified.problems)
    problems = "1 problem" if count == 1 else f"{count:,} problems"
    if verified.found is None:
        todo = f"alexshard verify {verified.path} --repair SOURCE makes them again; or copy the named files anew"
        return (
            f"error: {problems} in {verified.path}\n"
            "  why it matters: training would read wrong pixels or labels, or stop\n"
            f"  what to do: {todo}"
        )
    return (
        f"error: {problems} left in {verified.path}\n"
        "  why it matters: no repair from this source can mend them\n"
        "  what to do: remove shards that the manifest does not know; copy other files from where the set came "
        "from, or build it again in another folder"
    )
