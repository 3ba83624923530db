"""Steps give the same results however they are taken, and never wait for a figure."""

import dataclasses

import pytest
import torch
from alexshard.trainer import AlexNet, Ranks, Recipe, Schedule, Stepper, TwoTowers, step
from alexshard.trainer.window import Line, Watch, Window

RECIPE = dataclasses.replace(Recipe.original(), width=0.125)


def batch(number=0, count=8):
    generator = torch.Generator().manual_seed(number)
    return torch.randn(count, 3, 64, 64, generator=generator) * 60, torch.arange(count) % 10


def losses(stepper, steps):
    return [stepper.step(step, *batch(step))[0].item() / 8 for step in steps]


def stepper(recipe=RECIPE, **how):
    return Stepper(AlexNet(recipe, 10, 64), recipe, Schedule.of(recipe, 1), **how)


# torch's compiler uses what torch deprecates.
compiles = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


@pytest.mark.slow
@compiles
def test_a_compiled_network_takes_the_same_steps_across_a_freeze():
    # Steps 70..74 of 93: conv1 is frozen at 72.
    eager, compiled = stepper(), stepper(compiled=True)
    expected, found = losses(eager, range(70, 75)), losses(compiled, range(70, 75))

    assert compiled.compiled
    assert compiled.module is not compiled.network
    assert found == pytest.approx(expected, rel=1e-5)
    for mine, theirs in zip(compiled.network.parameters(), eager.network.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


@compiles
def test_where_compiling_fails_a_warning_says_so_and_the_steps_go_on(monkeypatch, tmp_path):
    import torch._inductor.config

    torch._dynamo.reset()
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("/nowhere/g++",))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # nothing compiled before serves
    expected, tried = losses(stepper(), range(3)), stepper(compiled=True)

    with pytest.warns(UserWarning, match=r"torch\.compile failed, steps go on without"):
        found = losses(tried, range(3))

    assert found == pytest.approx(expected, rel=1e-6)
    assert not tried.compiled
    assert tried.module is tried.network


def test_an_error_that_is_not_the_compilers_is_not_swallowed(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda network, **_: network)  # compiles, and then the labels are wrong
    wrong = stepper(compiled=True)
    with pytest.raises(IndexError, match="out of bounds"):
        wrong.step(0, batch()[0][:2], torch.tensor([0, 10]))

    assert wrong.compiled


class Replaying:
    """In a CUDA graph's place: the same static memory, computed anew at each replay. Of CUDA it shows nothing."""

    made = 0

    def __init__(self, compute, images, labels):
        Replaying.made += 1
        self.compute, self.images, self.labels = compute, torch.empty_like(images), torch.empty_like(labels)

    def fits(self, images):
        return images.shape == self.images.shape

    def replay(self, images, labels):
        self.images.copy_(images)
        self.labels.copy_(labels)
        return self.compute(self.images, self.labels)


@pytest.fixture
def recording(monkeypatch):
    monkeypatch.setattr(step, "_Recording", Replaying)
    monkeypatch.setattr(step, "_on_one_card", lambda _: True)
    monkeypatch.setattr(Replaying, "made", 0)


def test_recorded_steps_draw_their_own_masks_and_are_recorded_anew_where_rates_change(recording):
    # Steps 66..79 of 93: rates change at 68, 72 (a freeze) and 78; three steps after each are not recorded.
    eager, recorded = stepper(), stepper(graphs=True)
    expected, found = losses(eager, range(66, 80)), losses(recorded, range(66, 80))

    assert found == expected
    assert Replaying.made == 2  # at 71 and 75; the others end before
    assert all(
        torch.equal(a, b) for a, b in zip(recorded.network.parameters(), eager.network.parameters(), strict=True)
    )


def test_a_batch_of_another_shape_is_computed_and_not_replayed(recording):
    stepped = stepper(graphs=True)
    losses(stepped, range(5))

    assert Replaying.made == 1
    assert stepped.step(5, *batch(5, count=4)).isfinite().all()


def test_where_recording_fails_a_warning_says_so_and_the_steps_go_on(recording, monkeypatch):
    def refused(self, compute, images, labels):
        compute(images, labels)  # as far as gradients, whatever is done then
        raise RuntimeError("operation not permitted when stream is capturing")

    expected, tried = losses(stepper(), range(3)), stepper(graphs=True)
    assert losses(tried, range(3)) == expected
    monkeypatch.setattr(Replaying, "__init__", refused)

    with pytest.warns(UserWarning, match="no CUDA graph of the step, steps go on without"):
        tried.step(3, *batch(3))

    assert not tried.graphs


def test_without_a_card_there_is_no_graph():
    assert not stepper(graphs=True).graphs


def test_no_step_reads_a_value_from_the_device(monkeypatch):
    # What waits for a card is a read: item, tolist, cpu, bool, numpy of a tensor that is computed.
    def read(*_, **__):
        raise AssertionError("a value was read")

    stepped, images = stepper(), batch()
    stepped.step(0, *images)
    for name in ("item", "tolist", "cpu", "__bool__", "__float__", "__int__", "nonzero"):
        monkeypatch.setattr(torch.Tensor, name, read)

    assert stepped.step(1, *images).shape == (3,)


def test_a_line_waits_for_nothing_and_is_the_mean_over_its_steps():
    watch = Watch()
    watch.images = 16
    line = Line(torch.tensor([[16.0, 4, 8], [8.0, 8, 8]], dtype=torch.float64), torch.tensor([0.5, 0]), watch)

    figures = line.figures()

    assert line.there
    assert (figures.loss, figures.top1_error, figures.top5_error) == (1.5, 0.25, 0.0)
    assert figures.updates == (0.5, 0.0)


def test_the_first_step_that_is_not_finite_has_its_place_in_the_line():
    sums = torch.ones(4, 3, dtype=torch.float64)
    sums[2, 0] = torch.inf

    assert Line(sums, torch.zeros(8), Watch()).first_bad() == 2


def test_taking_a_line_begins_the_window_again():
    window = Window(Ranks())
    window.add(torch.tensor([8.0, 4, 8], dtype=torch.float64), 8)
    line = window.line(torch.zeros(8))

    assert (line.steps, window.steps, line.figures().loss) == (1, 0, 1.0)


@pytest.mark.parametrize("build", [AlexNet, TwoTowers])
def test_the_ratio_of_update_to_weight_is_that_of_the_last_step_and_0_for_a_frozen_layer(build):
    recipe = RECIPE.with_fields({"layer_rates": {"conv1.weight": [[0, 0]], "fc8.weight": [[0, 0.5]]}})
    network = build(recipe, 10, 64)
    stepped = Stepper(network, recipe, Schedule.of(recipe, 10))
    stepped.step(0, *batch(0))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    stepped.step(1, *batch(1))

    after = network.state_dict()
    ratios = dict(zip(stepped.sgd.layers, stepped.update_ratios().tolist(), strict=True))
    expected = {
        layer: float(
            (after[f"{layer}.weight"] - before[f"{layer}.weight"]).norm() / after[f"{layer}.weight"].norm()
        )
        for layer in ratios
    }
    assert ratios == pytest.approx(expected, rel=1e-3)
    assert ratios["conv1"] == 0 < ratios["conv2"]
