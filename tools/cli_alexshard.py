"""The command `alexshard`: archives to shard sets, and everything one asks of a shard set."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .. import __version__
from ..shards import ImageFormat, ShardSet, WrongCall, is_address
from . import info as info_report
from .report import json_on_failure, print_json
from .swatches import colours_shown
from .terminal import Cli, Progress, signals_raise, table

if TYPE_CHECKING:
    from .packing.cluster import Cluster

FOLDER = click.Path(path_type=Path)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.group(cls=Cli)
@click.version_option(__version__, prog_name="alexshard")
def main() -> None:
    """Pack the ILSVRC archives into WebDataset shards and look at the result."""


@main.command()
@click.argument("dest", type=FOLDER)
@click.option("--train", type=click.IntRange(min=1), default=2000, show_default=True, help="Training images.")
@click.option("--val", type=click.IntRange(min=1), default=200, show_default=True, help="Validation images.")
@click.option("--test", type=click.IntRange(min=1), default=200, show_default=True, help="Test images.")
@click.option("--classes", type=click.IntRange(2, 100), default=10, show_default=True)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)
def sample(dest: Path, train: int, val: int, test: int, classes: int, seed: int) -> None:
    """Draw a small set of pictures into DEST, in the layout of the ILSVRC2010 archives.

    For trying everything without ImageNet. Equal arguments give equal bytes.
    """
    from .sample_archive import draw_sample

    counts = {"train": train, "val": val, "test": test}
    with signals_raise(signal.SIGTERM), Progress("sample", sum(counts.values()), "images") as progress:
        expected = draw_sample(dest, counts, num_classes=classes, seed=seed, on_images=progress.advance)
    splits = expected["splits"].items()
    click.echo(
        table([(name, s["images"], s["patched"]) for name, s in splits], header=("split", "images", "patched"))
    )
    click.echo(f"\n{classes} classes in {dest}; next:\n  alexshard build {shlex.quote(str(dest))}")


@main.command()
@click.argument("source")
@click.option(
    "--out",
    metavar="DIR|URL",
    help="New folder for the shard set, or a prefix in a store, as s3://bucket/sets/a.  "
    "[default: shards/NAME-OF-SOURCE]",
)
@click.option(
    "--work",
    type=FOLDER,
    help="Where the work on a set that goes to a store is done.  [default: a folder below ~/.cache/alexshard]",
)
@click.option("--format", "encoding", type=click.Choice(["jpeg", "raw"]), default="jpeg", show_default=True)
@click.option("--quality", type=click.IntRange(1, 100), help="Of JPEG.  [default: 90]")
@click.option("--size", type=click.IntRange(8, 2048), default=256, show_default=True, help="Side in pixels.")
@click.option("--exact", is_flag=True, help="Decode all pixels of large JPEGs too: slower, hardly visible.")
@click.option(
    "--samples-per-shard",
    type=click.IntRange(1, 16_000_000),  # beyond it the sums of its pixels would overflow, see SquareSums
    help="[default: what gives up to 128 MB; small sets are cut in four, or fewer of 250 samples]",
)
@click.option("--splits", help="Those to pack, as train,val.  [default: all that SOURCE has]")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Of the order.")
@click.option("-j", "--workers", type=click.IntRange(1, 1024), help="Processes.  [default: one a core]")
@click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="Pack on the workers of this Dask scheduler, as tcp://host:8786, instead of in processes here.",
)
@click.option(
    "--max-bad",
    default="0.1%",
    show_default=True,
    help="Bad images to leave out at most: a count or a percentage, rounded up.",
)
@click.option("--unlabelled", is_flag=True, help="Take val and test without ground truth, as unlabelled samples.")
@click.option(
    "--statistics-from",
    type=FOLDER,
    help="Shard set whose classes, mean and components a set without train takes.",
)
@click.option(
    "--restart", is_flag=True, help="Discard what an unfinished build has left in --out, and begin again."
)
@click.option(
    "--hung-after",
    type=click.FloatRange(min=1, max=86_400),
    default=300,
    show_default=True,
    help="Seconds without a word from a worker, after which it is killed and the build ends.",
)
@click.option("--dry-run", is_flag=True, help="Print the plan and write nothing.")
def build(
    source: str,
    out: str | None,
    work: Path | None,
    encoding: str,
    quality: int | None,
    size: int,
    exact: bool,
    samples_per_shard: int | None,
    splits: str | None,
    seed: int,
    workers: int | None,
    scheduler: str | None,
    max_bad: str,
    unlabelled: bool,
    statistics_from: Path | None,
    restart: bool,
    hung_after: float,
    dry_run: bool,
) -> None:
    """Pack the images in SOURCE into a shard set.

    SOURCE is a folder with the ILSVRC2010 or ILSVRC2012 archives, the same extracted, or a folder of images per
    class, with or without train/ val/ test/ above; or the address of one, as s3://BUCKET/PREFIX or
    https://HOST/FOLDER. Images are read straight out of the archives. Each becomes the
    central square of its shorter side, scaled to --size; EXIF orientation is ignored, as every ImageNet pipeline
    does. Bad images go to quarantine.jsonl.

    A build that ends early, however it ends, is continued by the same command.
    """
    from . import build_report, packing

    if encoding == "raw" and quality is not None:
        raise WrongCall("--quality is of JPEG, and a raw set holds none", remedy="leave out one of the two")
    image = ImageFormat(size, encoding, *((quality or 90, "4:2:0") if encoding == "jpeg" else (None, None)))
    by_name = Path("shards") / Path(os.path.abspath(source)).name  # noqa: PTH100 (a link keeps its name)
    folder, store = packing.destination(out or str(by_name), work)
    settings = packing.BuildSettings(
        source=build_report.source_named(source),
        out=folder,
        store=store,
        image=image,
        splits=packing.parse_splits(splits),
        samples_per_shard=samples_per_shard,
        seed=seed,
        max_bad=packing.MaxBad.parse(max_bad),
        unlabelled=unlabelled,
        exact=exact,
        statistics_from=statistics_from,
    )
    if scheduler is not None and workers is not None:
        raise WrongCall(
            "-j is of processes on this machine, and --scheduler has the shards packed by a cluster's workers",
            remedy="leave out one of the two",
        )
    with signals_raise(signal.SIGTERM), _cluster(scheduler, hung_after) as cluster:
        workers = cluster.num_threads if cluster else workers or packing.default_workers()
        with Progress("look", None, "images") as progress:
            plan = packing.plan_build(settings, on_found=progress.advance)
        cost = None
        if (dry_run or plan.found >= packing.WORTH_TELLING) and not packing.is_complete(plan):
            finished = () if restart else packing.finished_shards(plan)
            cost = packing.forecast(
                plan.listing.containers, plan.splits, image, workers=workers, finished=finished
            )
        if dry_run:
            command = build_report.typed_command(click.get_current_context(), but=("dry_run",))
            free = packing.free_bytes(settings.out)
            click.echo(build_report.plan_text(plan, workers, free, cost, command=command))
            return
        if cost:
            click.echo(f"reading: {build_report.reading_text(cost, workers)}", err=True)
        try:
            with Progress("build", plan.found, "images") as progress:
                report = packing.build(
                    plan,
                    workers=workers,
                    on_progress=lambda images, bad: progress.advance(images, note=f"{bad:,} bad" if bad else ""),
                    on_kept=progress.skip,
                    restart=restart,
                    hung_after_s=hung_after,
                    executor=cluster.pack_shards if cluster else None,
                )
        except WrongCall:
            raise
        except BaseException:
            command = build_report.typed_command(click.get_current_context(), but=("restart",))
            if extent := build_report.stopped_text(plan, command):
                click.echo(extent, err=True)
            raise
        if cluster:
            report.usage = report.usage.beside(cluster.usage)
    click.echo(build_report.summary_text(plan, report))


@contextmanager
def _cluster(scheduler: str | None, hung_after: float) -> Iterator[Cluster | None]:
    """The cluster of a scheduler, once it is fit for work; without a scheduler none."""
    if scheduler is None:
        yield None
        return
    try:
        from .packing.cluster import connected
    except ModuleNotFoundError as error:
        raise WrongCall(
            f"--scheduler needs the extra `cluster`: {error.name} is not installed",
            remedy="pip install '.[cluster]' in the clone of alexshard",
        ) from None

    def tell(what: object) -> None:
        click.echo(what, err=True)

    with connected(scheduler, hung_after=hung_after, on_wait=tell) as cluster:
        tell(cluster)
        yield cluster


@main.command()
@click.argument("where", metavar="DIR|URL")
@click.option("--classes", "all_classes", is_flag=True, help="List every class.")
@click.option(
    "--html",
    "page",
    type=FOLDER,
    is_flag=False,
    flag_value="info.html",
    metavar="[FILE]",
    help="Write a page with pictures instead, in one file.  [without FILE, at the end of the line: info.html]",
)
@AS_JSON
def info(where: str, all_classes: bool, page: Path | None, as_json: bool) -> None:
    """Tell what the shard set in DIR holds and how it was built.

    Of one in a store, as s3://BUCKET/PREFIX, only the small files are fetched.
    """
    if page is not None:
        if is_address(where):
            raise WrongCall(
                "--html shows pictures, and the set lies in a store",
                remedy="leave it out, or copy the set here first",
            )
        if all_classes or as_json:
            raise WrongCall("--html lists every class, and is a page", remedy="leave out --classes and --json")
        from .info_page import write_page

        write_page(ShardSet.open(where), page)
        click.echo(page)
        return
    with json_on_failure(as_json):
        if is_address(where):
            from ..pipeline import open_shard_set

            shard_set = open_shard_set(where)
        else:
            shard_set = ShardSet.open(where)
        about = info_report.report(shard_set)
    if as_json:
        print_json(about)
        return
    colours = colours_shown(sys.stdout)
    click.echo(info_report.text(shard_set, all_classes=all_classes, colours=colours), color=colours > 0)


@main.command()
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.option("--split", help="[default: train, or the first that the set has]")
@click.option("--label", help="Only this class: its synset or folder name, its number, or one of its words.")
@click.option(
    "-n", "--number", type=click.IntRange(1, 4096), help="Pictures at most.  [default: 64; 12 with --augmented]"
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Of the choice.")
@click.option(
    "--out", type=FOLDER, default="sheet.png", show_default=True, help="The PNG; replaced if it is there."
)
@click.option("--augmented", is_flag=True, help="Beside each picture, what a run with this seed makes of it.")
def show(
    folder: Path, split: str | None, label: str | None, number: int | None, seed: int, out: Path, augmented: bool
) -> None:
    """Draw a contact sheet of the shard set in DIR: pictures with their class names.

    The pictures are drawn by --seed from each class in turn, and sorted by label. With --augmented each comes with
    the crops, mirrors and colour jitter that the loader gives it in the first epochs.
    """
    from .show import Wish, show

    shard_set = ShardSet.open(folder)
    with Progress("show", None, "pictures") as progress:
        show(shard_set, Wish(split, label, number, seed, augmented), out, on_images=progress.advance)
    click.echo(out)


@main.command()
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.option("--deep", is_flag=True, help="Also read it with the webdataset library and decode every image.")
@click.option(
    "--repair",
    "source",
    metavar="SOURCE",
    help="Make what is wrong again, to the same bytes, from the folder or address that the set was built from.",
)
@AS_JSON
def verify(folder: Path, deep: bool, source: str | None, as_json: bool) -> None:
    """Check every byte of the shard set in DIR: structure, indexes, SHA-256, labels.

    Prints one line for each problem, with file and byte, and exits 1 if there is any. With --repair sound files
    are not touched, nothing is replaced but by what has the promised SHA-256, and it exits 1 if a problem is left.
    """
    from . import verifying

    with json_on_failure(as_json), signals_raise(signal.SIGTERM):
        verified = verifying.verified(folder, deep=deep, source=source)
    if as_json:
        print_json(verifying.report(verified))
    else:
        click.echo(verifying.text(verified))
    if verified.problems:
        click.echo(verifying.error_text(verified), err=True)
        sys.exit(1)


@main.command()
@AS_JSON
def doctor(as_json: bool) -> None:
    """Look at what is installed and say what to do where something is missing or slow.

    Exits 1 if something that alexshard needs is broken.
    """
    from .doctor import PROBLEM, examine, to_text

    findings = examine()
    broken = any(finding.status == PROBLEM for finding in findings)
    if as_json:
        print_json({"sound": not broken, "findings": [asdict(finding) for finding in findings]})
    else:
        click.echo(to_text(findings))
    if broken:
        sys.exit(1)


if __name__ == "__main__":
    main()
