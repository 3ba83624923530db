"""Checkpoints: exact, whole, and never a way for code to come in."""

import dataclasses
import pickle

import pytest
import torch
from alexshard.shards import AlexshardError, WrongCall
from alexshard.trainer import AlexNet, BadCheckpoint, Checkpoint, Plateau, Recipe, TwoTowers

RATES = {"weights": 0.01, "biases": 0.02, "conv1.weight": 0.01, "conv1.bias": 0.02}
SMALL = dataclasses.replace(Recipe.original(), width=0.125)


@pytest.fixture
def checkpoint():
    network = AlexNet(SMALL, 10, 64)
    momentum = {name: torch.randn_like(value) for name, value in network.state_dict().items()}
    return Checkpoint(
        recipe=SMALL,
        side=64,
        stored_side=74,
        classes=tuple((f"n{label:08d}", f"thing {label}") for label in range(10)),
        mean_image=torch.arange(74 * 74 * 3).view(74, 74, 3) / 100,
        channel_mean=(120.0, 110.0, 100.0),
        shard_set="d" * 64,
        set_name="drawn",
        training_images=160,
        steps_per_epoch=5,
        step=12,
        evaluated_step=10,
        evaluation={
            **{"split": "val", "views": 1, "samples": 40, "step": 10},
            **{"loss": 2.0, "top1_error": 0.5, "top5_error": 0.25},
        },
        plateau=Plateau(0.5, 10, (3, 7)),
        loader={"epoch": 2, "position": 256},
        network=network.state_dict(),
        optimiser={"momentum": momentum, "rates": RATES},
    )


def test_what_is_saved_is_what_is_loaded(checkpoint, tmp_path):
    checkpoint.save(tmp_path / "checkpoint.pt")
    loaded = Checkpoint.load(tmp_path / "checkpoint.pt")

    for field in dataclasses.fields(Checkpoint):
        if field.name not in ("network", "optimiser", "mean_image"):
            assert getattr(loaded, field.name) == getattr(checkpoint, field.name)
    assert loaded.optimiser["rates"] == checkpoint.optimiser["rates"]
    pairs = [
        (loaded.network, checkpoint.network),
        (loaded.optimiser["momentum"], checkpoint.optimiser["momentum"]),
    ]
    for one, other in pairs:
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("network", [AlexNet, TwoTowers])
def test_the_weights_go_into_either_network(checkpoint, network):
    fresh = network(dataclasses.replace(SMALL, seed=5), 10, 64)

    checkpoint.put_into(fresh)

    assert all(torch.equal(value, checkpoint.network[name]) for name, value in fresh.state_dict().items())


def test_the_weights_of_another_network_are_refused_in_words(checkpoint):
    with pytest.raises(BadCheckpoint, match=r"of another network\n  where: size mismatch for conv1.weight"):
        checkpoint.put_into(AlexNet(dataclasses.replace(SMALL, width=0.25), 10, 64))


@pytest.mark.parametrize("kept", [0, 1, 1000, 0.5, 0.999])
def test_a_file_that_was_cut_is_refused_in_words(checkpoint, tmp_path, kept):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path)
    data = path.read_bytes()
    path.write_bytes(data[: kept if isinstance(kept, int) else int(kept * len(data))])

    with pytest.raises(BadCheckpoint, match="cannot be read") as refused:
        Checkpoint.load(path)

    assert str(path) in str(refused.value)


def test_a_flipped_bit_is_refused_in_words(checkpoint, tmp_path):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path)
    data = path.read_bytes()
    places = [int(share * len(data)) for share in (0, 0.001, 0.01, 0.1, 0.25, 0.5, 0.75, 0.99)]
    accepted = []
    for place in places:
        path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        try:
            Checkpoint.load(path)
        except BadCheckpoint:
            continue
        accepted.append(place)

    assert accepted == []


class _Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("write", [torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing))])
def test_a_file_that_holds_code_is_refused_and_not_run(tmp_path, write):
    write({"format": 1, "network": _Hostile(tmp_path / "ran")}, tmp_path / "checkpoint.pt")

    with pytest.raises(BadCheckpoint, match="cannot be read"):
        Checkpoint.load(tmp_path / "checkpoint.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("step", -1),
        ("step", 1.5),
        ("step", True),
        ("classes", [["n0", 5]]),
        ("mean_image", torch.zeros(3, 3, 3)),
        ("mean_image", torch.zeros(74, 74, 3, dtype=torch.float64)),
        ("network", {"conv1.weight": [1.0]}),
        ("optimiser", {"momentum": {}}),
        ("plateau", {"best_error": "none"}),
        ("loader", 7),
        ("channel_mean", (1, 2)),
        ("evaluation", "good"),
        ("recipe", 3),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_with_values_of_another_kind_is_refused(checkpoint, tmp_path, field, value):
    checkpoint.save(tmp_path / "checkpoint.pt")
    fields = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    torch.save(fields | {field: value}, tmp_path / "checkpoint.pt")

    with pytest.raises(BadCheckpoint, match="cannot be read: its "):
        Checkpoint.load(tmp_path / "checkpoint.pt")


def test_a_file_of_another_kind_is_refused(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "checkpoint.pt")

    with pytest.raises(BadCheckpoint, match="not a checkpoint of format 2 but of None"):
        Checkpoint.load(tmp_path / "checkpoint.pt")


def test_a_missing_checkpoint_is_a_wrong_call(tmp_path):
    with pytest.raises(WrongCall, match="no checkpoint"):
        Checkpoint.load(tmp_path / "checkpoint.pt")


def test_a_write_that_fails_leaves_the_one_before(checkpoint, tmp_path):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path)
    before = path.read_bytes()

    with pytest.raises(RuntimeError, match="out of space"):
        dataclasses.replace(checkpoint, loader={"epoch": _Full()}).save(path)

    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


class _Full:
    def __reduce__(self):
        raise RuntimeError("out of space")


def test_a_set_of_other_classes_or_another_size_does_not_fit(checkpoint, small_set, tiny_set):
    checkpoint.check_fits(small_set)

    with pytest.raises(AlexshardError, match=r"trained for 10 classes and crops of 64×64[\s\S]*crops of 28×28"):
        checkpoint.check_fits(tiny_set)
    with pytest.raises(AlexshardError, match="trained for 9 classes"):
        dataclasses.replace(checkpoint, classes=checkpoint.classes[1:]).check_fits(small_set)
