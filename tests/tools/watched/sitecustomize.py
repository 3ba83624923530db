"""What every Python process of a watched command runs first, this folder being on its path (see ../watching.py).

It counts what the process is about to do to the files below one folder, in a count that all processes share, and
acts at one of these events: kills, stops, or runs a command. If asked, it records every event with the bytes that
reached the disk.
"""

import hashlib
import json
import os
import re
import resource
import signal
import stat
import sys
import threading
from pathlib import Path

ORDERS = json.loads(os.environ.get("WATCHED", "null"))
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
ROLE = "worker" if "--multiprocessing-fork" in sys.orig_argv else "coordinator"


class Watch:
    def __init__(self, orders):
        self.below = orders["below"]
        self.at = orders["at"]  # the number of the event to act at, from 1
        self.then = orders["then"]
        self.since = re.compile(orders["since"])  # events are counted from the first that matches
        self.counting = not orders["since"]
        self.role = orders["role"]  # whose events are counted; empty: all
        self.log = Path(orders["log"])
        self.blobs = Path(orders["blobs"]) if orders["blobs"] else None
        self.own = threading.local()  # has `busy` while this thread watches itself

    def relative(self, path, dir_fd=-1):
        """The path below the watched folder; None: it is elsewhere."""
        folder = Path.cwd() if dir_fd in (-1, None) else Path(f"/proc/self/fd/{dir_fd}").readlink()
        if isinstance(path, int):
            path = Path(f"/proc/self/fd/{path}").readlink()
        path = os.path.normpath(folder / os.fsdecode(path))
        if path != self.below and not path.startswith(self.below + "/"):
            return None
        return os.path.relpath(path, self.below)

    def about_to(self, what, *paths):
        """An event is about to happen."""
        text = " ".join((what, *paths))
        self.counting = self.counting or bool(self.since.search(text))
        if not self.counting or self.role not in ("", ROLE):
            return
        number = append(self.log, {"role": ROLE, "pid": os.getpid(), "event": text})
        if number == self.at:
            self.act()

    def act(self):
        coordinator = os.getppid() if ROLE == "worker" else os.getpid()
        if self.then == "kill this":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.then == "kill coordinator":
            os.kill(coordinator, signal.SIGKILL)
        elif self.then == "kill all":
            os.killpg(os.getpgid(0), signal.SIGKILL)
        elif self.then == "stop this":
            os.kill(os.getpid(), signal.SIGSTOP)
        else:
            os.system(self.then)

    def record(self, what, *paths, content=None):
        if self.blobs is not None:
            name = None
            if content is not None:
                name = hashlib.sha256(content).hexdigest()
                (self.blobs / name).write_bytes(content)
            append(self.blobs / "log", {"what": what, "paths": paths, "content": name})


def append(path, item):
    """Add a line at once; returns its number, from 1."""
    line = json.dumps(item).encode("ascii")
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        width = 1024  # of every line, so that where it ended says how many there are
        os.write(file, line.ljust(width - 1) + b"\n")
        return os.lseek(file, 0, os.SEEK_CUR) // width
    finally:
        os.close(file)


def paths_of(watch, event, arguments):
    """Name and paths of an event that changes files; None: of no interest."""
    if event == "open" and arguments[2] & WRITES and not isinstance(arguments[0], int):
        return "open", [watch.relative(arguments[0])]
    if event in ("os.remove", "os.rmdir"):
        return event[3:], [watch.relative(arguments[0], arguments[1])]
    if event == "os.mkdir":
        return "mkdir", [watch.relative(arguments[0], arguments[2])]
    if event == "os.truncate":
        return "truncate", [watch.relative(arguments[0])]
    if event == "os.rename":
        return "rename", [watch.relative(arguments[0], arguments[2]), watch.relative(arguments[1], arguments[3])]
    return None


def start(orders):
    watch = Watch(orders)

    def hook(event, arguments):
        if getattr(watch.own, "busy", False):
            return
        watch.own.busy = True
        try:
            found = paths_of(watch, event, arguments)
            if found is not None and None not in found[1]:
                watch.about_to(found[0], *found[1])
                content = None
                if found[0] == "rename" and watch.blobs and Path(arguments[0]).is_file():
                    content = Path(arguments[0]).read_bytes()
                watch.record(found[0], *found[1], content=content)
        finally:
            watch.own.busy = False

    fsync = os.fsync

    def watched_fsync(descriptor):
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        path = watch.relative(descriptor)
        if path is not None:
            watch.own.busy = True
            watch.about_to("sync_folder" if is_folder else "sync", path)
            watch.own.busy = False
        fsync(descriptor)
        if path is not None:
            watch.own.busy = True
            content = None if is_folder else Path(f"/proc/self/fd/{descriptor}").read_bytes()
            watch.record("sync_folder" if is_folder else "sync", path, content=content)
            watch.own.busy = False

    os.fsync = watched_fsync
    sys.addaudithook(hook)


if ORDERS is not None:
    if ORDERS["file_bytes"] is None:
        start(ORDERS)
    else:
        # Linux ends a process that makes a file longer than this, in the middle of the write.
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (ORDERS["file_bytes"],) * 2)
