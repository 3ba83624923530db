"""Names on disk: splits, shards, keys. Format and parse live together, so that they cannot drift."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from enum import StrEnum

from .errors import AlexshardError

KEY_LENGTH = 80  # with ".jpg" it stays inside the 100 bytes that a ustar header has for a name
_KEY = re.compile(rf"[A-Za-z0-9_][A-Za-z0-9_-]{{0,{KEY_LENGTH - 1}}}")
_SHARD_NAME = re.compile(r"(?P<split>train|val|test)-(?P<number>\d{6})\.tar")


class Split(StrEnum):
    TRAIN = "train"
    VAL = "val"
    TEST = "test"


@dataclass(frozen=True, slots=True, order=True)
class ShardName:
    """Name of one shard file, e.g. `train-000042.tar`; numbers start at 0 and have no gaps.

    >>> str(ShardName.parse("train-000042.tar")), ShardName(Split.VAL, 7).index_name
    ('train-000042.tar', 'val-000007.idx')
    """

    split: Split
    number: int

    def __post_init__(self) -> None:
        if not 0 <= self.number < 1_000_000:
            raise ValueError(f"a shard number has six digits, got {self.number}")

    def __str__(self) -> str:
        return f"{self.split}-{self.number:06d}.tar"

    @property
    def index_name(self) -> str:
        return f"{self.split}-{self.number:06d}.idx"

    @classmethod
    def parse(cls, text: str) -> ShardName:
        found = _SHARD_NAME.fullmatch(text)
        if found is None:
            raise AlexshardError(f"{text!r} is no shard name; one looks like train-000042.tar")
        return cls(Split(found["split"]), int(found["number"]))


def is_key(text: str) -> bool:
    """Whether `text` can be a sample's key: ASCII letters, digits, `_` and `-`, at most 80 of them.

    No dot (webdataset and DALI read what follows the first one as the extension), no folder, no leading dash
    (tools would read it as an option).
    """
    return _KEY.fullmatch(text) is not None


def safe_key(text: str) -> str:
    """A valid key that resembles `text`; two texts may give the same one, so the caller makes it unique.

    >>> safe_key("naïve café 1"), safe_key("-dash"), safe_key("église"), safe_key("犬")
    ('naive_cafe_1', '_dash', 'eglise', '_')
    """
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    key = re.sub(r"[^A-Za-z0-9_-]+", "_", ascii_text)[:KEY_LENGTH]
    if key.startswith("-"):
        key = "_" + key[1:]
    return key or "_"
