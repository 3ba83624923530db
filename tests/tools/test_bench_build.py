"""tools/bench_build: it packs what it is given, counts what it says, and names whoever could not run."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from alexshard.tools import bench_build
from alexshard.tools.bench_build import BUILD, DECODE, Contestant, largest_process, write_archive
from alexshard.tools.bench_parts import psnr_of_reduced
from alexshard.tools.bench_peers import PEERS, images_of_archive

from tests.conftest import run
from tests.tools import drawn

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "bench_build"
QUICK = ("--images", 40, "--repeats", 1, "-j", 2)


@pytest.fixture(scope="module")
def report(sample_source, tmp_path_factory) -> dict:
    """What one small run says, with webdataset's writer as the only peer."""
    folder = tmp_path_factory.mktemp("bench")
    said = json.loads(run(sys.executable, SCRIPT, sample_source, *QUICK, "--json", "--temp", folder))
    assert not list(folder.iterdir()), "it leaves nothing"
    return said


def test_every_contestant_has_run_with_one_worker_and_with_several(report):
    ran = {(row["name"], row["workers"], row["images"]) for row in report["results"]}
    peer = PEERS[0].name

    assert {(who, n, 40) for who in (DECODE, BUILD, peer) for n in (1, 2)} <= ran
    assert {(BUILD, 1, 10), (BUILD, 1, 20)} <= ran


def test_figures_are_positive_and_ordered(report):
    spreads = [*report["parallel_efficiency"].values()]
    spreads += [row[name] for row in report["results"] for name in ("images_per_s", "cpu_ms_per_image")]

    assert all(0 < found["min"] <= found["median"] <= found["max"] for found in spreads)
    assert list(report["an_image_adds"]) == [BUILD, PEERS[0].name]
    assert all(row["peak_bytes"] > 1_000_000 for row in report["results"])
    assert set(report["parts_ms"]) == {"decoding alone", "decode", "square", "sums", "encode", "SHA-256"}


def test_machine_and_versions_stand_beside_the_figures(report):
    assert report["machine"]["cores"] >= 1
    assert {"alexshard", "python", "jpeg", "resampler", "numpy", "webdataset"} <= set(report["versions"])


def test_the_text_has_a_line_for_each_contestant_and_says_who_did_not_run(report):
    text = bench_build.to_text(report)

    assert text.count(BUILD) > 3
    assert all(peer.name in text for peer in PEERS)


def test_the_archive_is_nested_and_holds_every_image_as_often_as_asked(tmp_path):
    originals = [drawn.jpeg(i) for i in range(7)]
    archive = write_archive(tmp_path / "made", originals, 25)
    with tarfile.open(archive) as outer:
        names = outer.getnames()

    images = list(images_of_archive(archive))
    halves = [image for share in range(2) for image in images_of_archive(archive, share, 2)]

    assert names == [f"n{label:08d}.tar" for label in range(10)]
    assert [images.count(data) for data in originals] == [4, 4, 4, 4, 3, 3, 3]
    assert sorted(halves) == sorted(images)


def test_a_contestant_that_fails_is_told_with_what_it_said(tmp_path):
    archive = write_archive(tmp_path / "made", [drawn.jpeg(1)], 40)
    archive.write_bytes(archive.read_bytes()[:5000])

    with pytest.raises(bench_build.AlexshardError, match=r"alexshard build ended with exit code 1:\n.*cut"):
        bench_build.run(Contestant(BUILD, 1, 40), archive, tmp_path / "out")


def test_the_largest_process_is_found_among_the_descendants():
    hungry = "import sys; block = bytearray(150_000_000); print('ready', flush=True); sys.stdin.read()"
    shell = ["sh", "-c", '"$0" -c "$1"; true', sys.executable, hungry]
    with subprocess.Popen(shell, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        peak = largest_process(process.pid)
        process.communicate()

    assert 150_000_000 < peak < 300_000_000
    assert largest_process(process.pid) == 0


def test_only_images_that_are_decoded_at_a_fraction_count_for_the_quality():
    ramp = np.linspace(0, 255, 1600)
    large = np.dstack([np.add.outer(ramp[:1200], ramp) / 2, np.add.outer(ramp[:1200], -ramp) / 2 + 128])
    picture = np.dstack([large, large[..., 0]]).astype(np.uint8)
    images = [simplejpeg.encode_jpeg(np.ascontiguousarray(picture), quality=95), drawn.jpeg(1, 500, 375)]

    quality = psnr_of_reduced(images)

    assert (quality["images"], quality["of"]) == (1, 2)
    assert quality["worst_db"] > 40
    assert psnr_of_reduced(images[1:]) == {"images": 0, "of": 1}


def test_a_source_that_is_none_exits_2(tmp_path):
    done = subprocess.run([sys.executable, SCRIPT, tmp_path / "none"], capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert done.stderr.startswith("error: SOURCE")
