"""Steps give the same results however they are taken, and never wait for a figure."""

import dataclasses

import pytest
import torch
from alexshard.trainer import AlexNet, Ranks, Recipe, Schedule, Stepper
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
    wrong = stepper()
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        wrong.step(0, torch.zeros(2, 3, 96, 96), torch.tensor([0, 1]))


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
    line = Line(torch.tensor([[16.0, 4, 8], [8.0, 8, 8]], dtype=torch.float64), watch)

    figures = line.figures()

    assert line.there
    assert (figures.loss, figures.top1_error, figures.top5_error) == (1.5, 0.25, 0.0)


def test_the_first_step_that_is_not_finite_has_its_place_in_the_line():
    sums = torch.ones(4, 3, dtype=torch.float64)
    sums[2, 0] = torch.inf

    assert Line(sums, Watch()).first_bad() == 2


def test_taking_a_line_begins_the_window_again():
    window = Window(Ranks())
    window.add(torch.tensor([8.0, 4, 8], dtype=torch.float64), 8)
    line = window.line()

    assert (line.steps, window.steps, line.figures().loss) == (1, 0, 1.0)
