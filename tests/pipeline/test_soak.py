"""Fifty epochs leave nothing behind: memory, descriptors and threads stay where they were after the first ones."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from alexshard.pipeline import kernels

EPOCHS, WARM = 50, 10
# Batches of 4: 18 an epoch. A batch kept each epoch (float32) would be 8 MB in the 40 epochs that are measured,
# 8 kB kept of each batch 6 MB. Allocators wander by 1 to 2 MB.
FLAT_MB = 4.0

EPOCH_AFTER_EPOCH = """
import json, os, sys
from pathlib import Path
from alexshard.pipeline import Loader

folder, backend, output, epochs = sys.argv[1:]
with Loader(folder, batch_size=4, backend=backend, output=output) as loader:
    for _ in range(int(epochs)):
        keys = [key for batch in loader for key in batch.keys]
        print(json.dumps({
            "samples": len(set(keys)),
            "resident_mb": int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6,
            "descriptors": len(os.listdir("/proc/self/fd")),
            "threads": len(os.listdir("/proc/self/task")),
            "shared": "/dev/shm/" in Path("/proc/self/maps").read_text(),
        }))
"""


@pytest.mark.slow
@pytest.mark.parametrize("output", ["uint8", "float32"])
@pytest.mark.parametrize("backend", ["threads", "dali"])
def test_fifty_epochs_leave_nothing_behind(jpeg_set, backend, output):
    if backend == "threads" and not kernels.AVAILABLE:
        pytest.skip("NO KERNELS: the backend `threads` was not built")
    done = subprocess.run(
        [sys.executable, "-c", EPOCH_AFTER_EPOCH, str(jpeg_set.path), backend, output, str(EPOCHS)],
        capture_output=True,
        text=True,
        check=True,
    )
    epochs = [json.loads(line) for line in done.stdout.splitlines()]
    resident_mb = np.array([epoch["resident_mb"] for epoch in epochs])
    slope, _ = np.polyfit(np.arange(WARM, EPOCHS), resident_mb[WARM:], 1)
    fifth, last = resident_mb[4], resident_mb[-1]
    threads, descriptors = ({epoch[name] for epoch in epochs} for name in ("threads", "descriptors"))
    print(f"{backend} {output}: {fifth:.1f} MB after 5 epochs, {last:.1f} after {EPOCHS}, ", end="")
    print(f"{slope * 1000:+.1f} kB an epoch; threads {threads}, descriptors {descriptors}")

    assert [epoch["samples"] for epoch in epochs] == [72] * EPOCHS
    assert slope * (EPOCHS - WARM) < FLAT_MB
    assert last - fifth < FLAT_MB
    assert max(threads) - min(threads) <= 1  # that of an epoch has ended, or is about to
    assert max(descriptors) - min(descriptors) <= 1
    assert not any(epoch["shared"] for epoch in epochs)
