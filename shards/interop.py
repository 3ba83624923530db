"""What other libraries look for beside the shards: `_info.json`, a list of classes, names in braces.

Source: what timm's webdataset reader (1.0.31) takes from `_info.json`, split by split (name, filenames,
shard_lengths, num_samples), and from a class map ending in `.txt` (line N, from 0, names the class of label N).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from .manifest import ClassEntry, ShardEntry, SplitEntry
from .naming import ShardName
from .rows import escaped


def info_text(splits: Mapping[str, SplitEntry]) -> str:
    """The text of `_info.json`."""
    told = {
        name: {
            "name": name,
            "filenames": [shard.name for shard in split.shards],
            "shard_lengths": [shard.samples for shard in split.shards],
            "num_samples": split.samples,
        }
        for name, split in splits.items()
    }
    return json.dumps({"splits": told}, indent=1) + "\n"


def classes_text(classes: Iterable[ClassEntry]) -> str:
    """The text of `classes.txt`: a synset (or folder name) a line, in the order of labels."""
    return "".join(f"{escaped(entry.synset)}\n" for entry in classes)


def braces(shards: Iterable[ShardEntry]) -> str:
    """The shards of a split as one pattern, which webdataset and shells expand to their names.

    >>> from .manifest import ShardEntry
    >>> braces([ShardEntry(f"val-{number:06d}.tar", 1, 1, "", "") for number in range(12)])
    'val-{000000..000011}.tar'
    """
    names = [ShardName.parse(shard.name) for shard in shards]
    if len(names) < 2:
        return "".join(map(str, names))
    return f"{names[0].split}-{{{names[0].number:06d}..{names[-1].number:06d}}}.tar"
