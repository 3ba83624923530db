"""Devices by name."""

import pytest
import torch
from alexshard.shards import WrongCall
from alexshard.trainer import Machine, Ranks


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


@pytest.mark.parametrize(
    ("wishes", "cards", "expected"),
    [
        ({}, 0, ("single", ["cpu"])),
        ({"device": "cpu"}, 2, ("single", ["cpu"])),
        ({"devices": ["cpu", "cpu"]}, 0, ("towers", ["cpu", "cpu"])),
        ({"parallel": "towers"}, 0, ("towers", ["cpu", "cpu"])),
        ({"parallel": "towers", "device": "cpu"}, 2, ("towers", ["cpu", "cpu"])),
        ({"ranks": Ranks(1, 2, 1)}, 0, ("ddp", ["cpu"])),
    ],
)
def test_what_is_there_decides_how_the_network_is_spread(wishes, cards, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    machine = Machine.choose(**wishes)

    assert (machine.parallel, [str(device) for device in machine.devices]) == expected


@pytest.mark.parametrize(
    ("wishes", "cards", "expected"),
    [
        ({}, 1, ("single", ["cuda:0"])),
        ({}, 2, ("towers", ["cuda:0", "cuda:1"])),
        ({}, 8, ("towers", ["cuda:0", "cuda:1"])),
        ({"device": "cuda:1"}, 2, ("single", ["cuda:1"])),
        ({"parallel": "single"}, 2, ("single", ["cuda:0"])),
        ({"parallel": "towers", "devices": ["cuda:0", "cuda:0"]}, 1, ("towers", ["cuda:0", "cuda:0"])),
        ({"ranks": Ranks(9, 16, 1)}, 8, ("ddp", ["cuda:1"])),
        ({"ranks": Ranks(1, 2, 1), "device": "cpu"}, 2, ("ddp", ["cpu"])),
    ],
)
def test_of_several_cards_two_are_the_towers_and_torchrun_gives_each_rank_its_own(
    wishes, cards, expected, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    machine = Machine.choose(**wishes)

    assert (machine.parallel, [str(device) for device in machine.devices]) == expected
    assert machine.graphs == (expected[0] == "single")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"parallel": "ddp"}, "--parallel ddp without torchrun"),
        ({"parallel": "single", "ranks": Ranks(0, 2)}, "--parallel single under torchrun"),
        ({"parallel": "towers", "ranks": Ranks(0, 2)}, "--parallel towers under torchrun"),
        ({"devices": ["cpu", "cpu"], "ranks": Ranks(0, 2)}, "--devices under torchrun"),
        ({"parallel": "single", "devices": ["cpu", "cpu"]}, "--parallel single with --devices"),
        ({"device": "cuda:1", "ranks": Ranks(0, 2)}, "--device cuda:1 for 2 ranks"),
        ({"parallel": "towers", "compiled": True}, "--compile with the network as two towers"),
        ({"device": "cpu", "graphs": True}, "--graphs without a single card"),
    ],
)
def test_wishes_that_contradict_each_other_are_a_wrong_call_with_a_remedy(wrong, message, monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    with pytest.raises(WrongCall, match=message) as refused:
        Machine.choose(**wrong)

    assert refused.value.remedy


def test_a_single_rank_of_torchrun_is_a_rank_and_no_towers(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    assert Machine.choose().parallel == "ddp"
    assert [str(device) for device in Machine.choose().devices] == ["cuda:0"]


def test_towers_on_the_only_card_must_be_asked_for_by_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(WrongCall, match="torch sees 1 GPU\n") as refused:
        Machine.choose(parallel="towers")

    assert "--devices cuda:0,cuda:0" in refused.value.remedy
