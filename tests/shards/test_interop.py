"""`_info.json`, `classes.txt` and names in braces say what the manifest says."""

from __future__ import annotations

import json

import pytest
from alexshard.shards import ClassEntry, Manifest, ShardEntry, braces
from alexshard.shards.interop import classes_text
from webdataset.shardlists import expand_urls

from .conftest import Tiny


def test_the_info_file_lists_shards_and_counts_of_every_split(tiny: Tiny) -> None:
    expected = {
        name: {
            "name": name,
            "filenames": [shard.name for shard in split.shards],
            "shard_lengths": [shard.samples for shard in split.shards],
            "num_samples": split.samples,
        }
        for name, split in Manifest.load(tiny.path).splits.items()
    }

    assert json.loads((tiny.path / "_info.json").read_bytes()) == {"splits": expected}
    assert all(sum(split["shard_lengths"]) == split["num_samples"] > 0 for split in expected.values())


def test_line_n_of_the_class_file_names_label_n(tiny: Tiny) -> None:
    assert (tiny.path / "classes.txt").read_bytes() == b"a\nb\nc\n"


def test_no_name_of_a_class_breaks_its_line() -> None:
    names = ["two\nlines", "tab\there", "back\\slash", "犬"]

    lines = classes_text([ClassEntry(name, "", None) for name in names]).splitlines()

    assert lines == ["two\\nlines", "tab\\there", "back\\\\slash", "犬"]


@pytest.mark.parametrize("count", [0, 1, 2, 12, 223])
def test_names_in_braces_expand_to_the_names_of_the_shards(count: int) -> None:
    names = [f"train-{number:06d}.tar" for number in range(count)]

    pattern = braces([ShardEntry(name, 1, 1, "", "") for name in names])

    assert expand_urls(pattern) == (names or [""])
