"""Files of a shard set are regular ones: a pipe would be waited for, a device read without end."""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    return open(path, "rb", opener=_opener)


def open_descriptor(path: Path) -> int:
    """The same as a bare descriptor, which the caller closes.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    return _opener(os.fspath(path), os.O_RDONLY | os.O_CLOEXEC)


def regular_status(path: Path) -> os.stat_result:
    """What the file system says of a file that can be read, without opening it.

    Raises:
        OSError: there is none, it may not be read, or is no regular file.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    if not os.access(path, os.R_OK, effective_ids=os.access in os.supports_effective_ids):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    return status


def read_regular(path: Path, most: int = -1) -> bytes:
    """The bytes of a file, or as many as are asked for.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """
    with open_regular(path) as file:
        return file.read(most)


def _opener(path: str, flags: int) -> int:
    number = os.open(path, flags | os.O_NONBLOCK)  # without it a pipe is not even opened before it has a writer
    if stat.S_ISREG(os.fstat(number).st_mode):
        return number
    os.close(number)
    raise OSError(errno.EINVAL, "it is no regular file", path)
