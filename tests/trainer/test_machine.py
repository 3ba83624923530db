"""Devices by name."""

import pytest
import torch
from alexshard.shards import WrongCall
from alexshard.trainer import Machine


def test_auto_is_a_gpu_where_there_is_one():
    assert Machine.choose("auto").device.type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_two_devices_are_two_towers_and_may_be_one_and_the_same():
    machine = Machine.choose(devices=["cpu", "cpu"])

    assert [str(device) for device in machine.devices] == ["cpu", "cpu"]
    assert machine.describe()["devices"] == ["cpu", "cpu"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"device": "gpu0"}, "'gpu0' is no device"),
        ({"device": "mps"}, "no support for the device 'mps'"),
        ({"device": "cuda:99"}, "the device cuda:99 is not there"),
        ({"devices": ["cpu"]}, "--devices names 1 devices"),
        ({"devices": ["cpu", "cpu", "cpu"]}, "--devices names 3 devices"),
        ({"threads": 0}, "0 threads"),
        ({"device": "cpu", "decoder": "card"}, "--decoder card decodes on a card"),
        ({"devices": ["cpu", "cpu"], "decoder": "split"}, "--decoder split decodes on a card"),
        ({"device": "cpu", "devices": ["cpu", "cpu"]}, "--device cpu and --devices cpu,cpu at once"),
    ],
)
def test_a_device_that_cannot_be_used_is_a_wrong_call(wrong, message):
    with pytest.raises(WrongCall, match=message) as refused:
        Machine.choose(**wrong)

    assert refused.value.exit_code == 2


def test_the_loader_is_told_what_was_asked_for_and_nothing_else():
    assert Machine.choose("cpu").loading == {}
    assert Machine.choose("cpu", threads=2, prefetch=3, backend="dali", decoder="cores").loading == {
        "threads": 2,
        "prefetch": 3,
        "backend": "dali",
        "decoder": "cores",
    }
