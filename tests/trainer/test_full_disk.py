"""A disk that is really full, a small one of memory, takes no run."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
import torch
from alexshard.trainer import RunFolder

IN_ITS_OWN = next(
    (
        words
        for words in (("unshare", "--map-root-user", "--mount"), ("unshare", "--mount"))
        if shutil.which("unshare")
        and subprocess.run(
            [*words, "sh", "-c", "mount -t tmpfs none /mnt"], capture_output=True, check=False
        ).returncode
        == 0
    ),
    None,
)
SCRIPT = """
disk=$1 copy=$2; shift 2
mount -t tmpfs -o size=8m none "$disk"
run() { "$@" --out "$disk/run" --max-steps $steps 2>&1; echo "exit code $?"; }
leave() {
    rm -f "$disk/filler"
    head -c $(($(df --output=avail -B1 "$disk" | tail -n 1) - $1)) /dev/zero > "$disk/filler"
}
steps=4; run "$@"
echo "# no room for a state"; steps=11; leave 500000; run "$@"
echo "# no room at all"; leave 0; run "$@"
echo "# room"; rm "$disk/filler"; run "$@"
cp -r "$disk/run" "$copy"
"""


@pytest.mark.slow
@pytest.mark.skipif(IN_ITS_OWN is None, reason="NO DISK TO FILL: mounting one is not allowed here")
def test_a_run_whose_disk_fills_up_goes_on_from_its_last_state_when_there_is_room(small_set, tmp_path):
    recipe = ("--shards", small_set.path, "--width", 0.125, "-b", 32, "--epochs", 3)
    saving = ("--checkpoint-every", 2, "--keep", 1)
    command = (sys.executable, "-m", "alexshard.tools.cli_alextrain", "run", *recipe, *saving, "--threads", 1)
    (tmp_path / "disk").mkdir()
    words = (*IN_ITS_OWN, "bash", "-c", SCRIPT, "bash", tmp_path / "disk", tmp_path / "cut", *command)
    said = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=True).stdout
    words = (*command, "--out", tmp_path / "whole", "--max-steps", 11)
    subprocess.run(list(map(str, words)), capture_output=True, check=True)

    first, no_state, nothing, room = said.split("\n# ")
    assert "exit code 0" in first
    assert "a checkpoint could not be written: No space left on device. Training goes on" in no_state
    assert "the state after step 11 could not be written: No space left on device" in no_state
    assert f"the last one on the disk is {tmp_path}/disk/run/checkpoints/step-000000004.pt" in no_state
    assert "exit code 1" in no_state
    assert f"{tmp_path}/disk/run cannot be written to: No space left on device" in nothing
    assert "exit code 2" in nothing
    assert "goes on after step 4" in room
    assert "exit code 0" in room
    cut, whole = (RunFolder(tmp_path / name) for name in ("cut", "whole"))
    assert all(torch.equal(cut.load().network[name], value) for name, value in whole.load().network.items())
    cut, whole = ([(r.step, r.loss) for r in run.records() if r.kind == "train"] for run in (cut, whole))
    assert cut == whole
