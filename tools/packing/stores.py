"""Object stores: one prefix of a bucket, or a folder of any store that fsspec speaks.

A name appears in a store whole or not at all. S3, Google's and Azure's stores do so by themselves, also for
uploads in parts; where a store keeps plain files (file://, sftp://) they go under a temporary name and are moved.
What fails is tried again where that may help (`Patience`).
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ...shards import (
    ANSWER_S,
    GOOGLE_SCHEMES,
    PAUSES_S,
    S3_SCHEMES,
    AlexshardError,
    Patience,
    WrongCall,
    open_store,
)

PART_BYTES = 8 * 2**20  # of an upload in parts; a thread holds two of them and some copies
_OBJECT_STORES = {*S3_SCHEMES, *GOOGLE_SCHEMES, "az", "abfs", "abfss", "adl", "oci", "oss", "memory"}
_HERE = {"file", "local"}
_MD5 = re.compile(r"[0-9a-f]{32}(-\d+)?")


@dataclass(frozen=True, slots=True)
class Stored:
    """What a store says of one of its files: equal bytes keep it, other bytes change it."""

    bytes: int
    tag: str  # ETag, MD5 or time of change, whichever the store has


class Store:
    """One prefix of a store. Names are those below it, as `train-000000.tar` or `.build/lock`.

    Raises:
        WrongCall: there is no such store or bucket, a library or the permission is missing.
        AlexshardError: the store cannot be reached, or fails again and again.
    """

    def __init__(self, address: str, *, pauses: tuple[float, ...] = PAUSES_S, answer_s: float = ANSWER_S) -> None:
        self._patience = Patience(address, pauses=pauses)
        self.shown = self._patience.shown
        self.protocol = address.partition("://")[0].lower()
        self._fs, self._path = open_store(address, self._patience, answer_s=answer_s)
        self.atomic = self.protocol in _OBJECT_STORES
        self.parallel = bool(self._fs.async_impl)  # others keep one connection, which no two threads may use
        # Google's `md5Hash` always is one; an ETag is where `put_bytes` has seen that it is (with a key of the
        # customer's own, for one, it is not).
        self._etag_is_md5 = False

    @property
    def folder(self) -> Path | None:
        """The folder of this machine that the prefix is, if it is one."""
        return Path(self._path) if self.protocol in _HERE else None

    def stop(self) -> None:
        """Nothing is tried again from here on."""
        self._patience.stop()

    # What is there ---------------------------------------------------------------------------------------------

    def listing(self) -> dict[str, Stored]:
        """Every file directly below the prefix and its `.build/`; folders that are neither end in a slash."""
        found = self._listed(self._path)
        if found is None:
            self._check_bucket()
            return {}
        inner = (self._listed(f"{self._path}/.build") or {}) if ".build/" in found else {}
        return {name: stored for name, stored in (found | inner).items() if name != ".build/"}

    def _listed(self, path: str) -> dict[str, Stored] | None:
        def ask() -> list[dict[str, Any]]:
            self._fs.invalidate_cache()
            return list(self._fs.ls(path, detail=True))

        try:
            entries = self._patience.run("list", "", ask)
        except FileNotFoundError:
            return None
        start = self._path.strip("/") + "/"
        listed = {}
        for entry in entries:
            name = entry["name"].strip("/").removeprefix(start)
            if entry["type"] == "directory":
                listed[name + "/"] = Stored(0, "")
            elif name and name + "/" != start:  # some stores list a marker for the folder itself
                listed[name] = _stored(entry)
        return listed

    def _check_bucket(self) -> None:
        bucket = self._path.split("/")[0]
        if self.protocol in {*S3_SCHEMES, *GOOGLE_SCHEMES} and not self._patience.run(
            "look for", "", lambda: self._fs.exists(bucket)
        ):
            raise WrongCall(
                f"there is no bucket {bucket}, or its existence is kept from you",
                where=self.shown,
                remedy="make it, or mend the name",
            )

    def stat(self, name: str) -> Stored | None:
        def ask() -> dict[str, Any]:
            self._fs.invalidate_cache()
            return dict(self._fs.info(self._at(name)))

        try:
            return _stored(self._patience.run("look at", name, ask))
        except FileNotFoundError:
            return None

    def read(self, name: str) -> bytes | None:
        try:
            return bytes(self._patience.run("read", name, lambda: self._fs.cat_file(self._at(name))))
        except FileNotFoundError:
            return None

    # What is changed -------------------------------------------------------------------------------------------

    def put_bytes(self, name: str, data: bytes, *, new: bool = False) -> bool:
        """Write a small file; with `new` only if there is none of that name. Says whether it was written."""
        known = self._fs_knows_create
        if new and self.stat(name) is not None:  # asked also where it can be a condition: not every S3 keeps that
            return False

        def put() -> None:
            self._make_folder(name)
            self._fs.pipe_file(self._at(name), data, **({"mode": "create"} if new and known else {}))

        try:
            self._patience.run("write", name, put)
        except FileExistsError:
            # Ours, if the answer to the first attempt was lost and the second met its work.
            return self.read(name) == data
        except FileNotFoundError as error:
            self._check_bucket()
            raise self._patience.failed("write", name, error) from None
        if (stored := self.stat(name)) is not None:
            self._etag_is_md5 = stored.tag == hashlib.md5(data, usedforsecurity=False).hexdigest()
        return True

    def put(self, file: Path, name: str) -> Stored:
        """Upload a file whole, and compare what the store has with what was sent."""

        def send() -> Stored:
            self._make_folder(name)
            if self.atomic:
                parts = {"chunksize": PART_BYTES, "max_concurrency": 2} if self.protocol in S3_SCHEMES else {}
                self._fs.put_file(str(file), self._at(name), **parts)
            else:
                part = f"{self._at(name)}.part-{os.urandom(8).hex()}"
                try:
                    self._fs.put_file(str(file), part)
                    self._settled(part)
                    self._fs.mv(part, self._at(name))
                except BaseException:
                    with suppress(Exception):
                        self._fs.rm_file(part)
                    raise
            self._fs.invalidate_cache()
            return self._compared(file, self._fs.info(self._at(name)))

        try:
            return self._patience.run("upload", name, send)
        except FileNotFoundError as error:  # the file, or the bucket, since the build began
            raise self._patience.failed("upload", name, error) from None

    def move(self, old: str, new: str) -> Stored:
        """Copy a stored file to another name; the old one stays until `remove`, so that nothing can be lost."""

        def copy() -> Stored:
            self._fs.cp_file(self._at(old), self._at(new))
            self._fs.invalidate_cache()
            stored, source = _stored(self._fs.info(self._at(new))), _stored(self._fs.info(self._at(old)))
            if stored.bytes != source.bytes:
                raise OSError(f"the copy has {stored.bytes:,} bytes, the original {source.bytes:,}")
            return stored

        try:
            return self._patience.run("copy", new, copy)
        except FileNotFoundError as error:
            raise self._patience.failed("copy", old, error) from None

    def remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._patience.run("remove", name, lambda: self._fs.rm_file(self._at(name)))
        folder = PurePosixPath(name).parent
        if not self.atomic and str(folder) != ".":
            with suppress(Exception):  # others may use it
                self._fs.rmdir(self._at(str(folder)))

    def abort_uploads(self, ours: Callable[[str], bool]) -> None:
        """Drop uploads in parts that nobody will finish: S3 keeps, and bills, what was sent of them."""
        if self.protocol not in S3_SCHEMES:
            return
        bucket, key, _ = self._fs.split_path(self._path)
        start = key + "/" if key else ""
        where = {"Bucket": bucket, "Prefix": start}
        try:
            found = self._patience.run("list", "", lambda: self._fs.call_s3("list_multipart_uploads", **where))
        except (AlexshardError, OSError):
            return  # not everybody may list them, and the bucket's owner can have them dropped by a rule
        for upload in found.get("Uploads", []):
            if ours(upload["Key"].removeprefix(start)):
                with suppress(Exception):
                    self._fs.abort_mpu(bucket, upload["Key"], upload["UploadId"])

    # How -------------------------------------------------------------------------------------------------------

    @property
    def _fs_knows_create(self) -> bool:
        return self.protocol in {*S3_SCHEMES, *GOOGLE_SCHEMES, *_HERE, "memory"}

    def _at(self, name: str) -> str:
        return f"{self._path}/{name}" if self._path else name

    def _make_folder(self, name: str) -> None:
        if not self.atomic:
            self._fs.makedirs(str(PurePosixPath(self._at(name)).parent), exist_ok=True)

    def _settled(self, path: str) -> None:
        """Bring a file of this machine to the disk before it gets its name."""
        if self.protocol in _HERE:
            with open(path, "rb") as file:  # noqa: PTH123 (a path of fsspec's)
                os.fsync(file.fileno())

    def _compared(self, file: Path, info: dict[str, Any]) -> Stored:
        stored, size = _stored(info), file.stat().st_size
        if stored.bytes != size:
            raise OSError(f"the store has {stored.bytes:,} bytes of {size:,}")
        if "md5Hash" in info or (self._etag_is_md5 and _MD5.fullmatch(stored.tag)):
            in_parts = "-" in stored.tag and "md5Hash" not in info
            promised = _md5_of_parts(file) if in_parts else _md5(file)
            if stored.tag != promised:
                raise OSError(f"the store has other bytes: its sum is {stored.tag}, ours {promised}")
        return stored


def _stored(info: dict[str, Any]) -> Stored:
    if "md5Hash" in info:
        return Stored(int(info["size"]), base64.b64decode(info["md5Hash"]).hex())
    tag = next((info[key] for key in ("ETag", "etag", "mtime", "modified", "created") if info.get(key)), "")
    return Stored(int(info["size"] or 0), str(tag).strip('"'))


def _md5(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _md5_of_parts(file: Path) -> str:
    """What S3 calls the ETag of an upload in parts of PART_BYTES: the MD5 of their MD5s, and their number."""
    digests = []
    with file.open("rb") as opened:
        while part := opened.read(PART_BYTES):
            digests.append(hashlib.md5(part, usedforsecurity=False).digest())
    return f"{hashlib.md5(b''.join(digests), usedforsecurity=False).hexdigest()}-{len(digests)}"
