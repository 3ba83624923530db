"""Two towers are the one-device network: values, gradients, state. They run at once; what crosses is counted."""

import copy
import dataclasses
import gc
import pickle
import subprocess
import sys
import threading

import pytest
import torch
import torch.nn.functional as F
from alexshard.pipeline import Trace
from alexshard.trainer import AlexNet, Crossed, Recipe, Schedule, Stepper, TwoTowers, crossing_bytes
from alexshard.trainer import towers as towers_module
from alexshard.trainer.dropout import Masks
from alexshard.trainer.towers import _Crossing, _run_part, _Threads

RECIPES = {
    "original": dataclasses.replace(Recipe.original(), width=0.125),
    "paper": dataclasses.replace(Recipe.paper(), width=0.25),
    "conv6": dataclasses.replace(Recipe.original(), width=0.125, conv6=True),
}
PARTS = ("layers_1_to_2", "layers_3_to_5", "layer_6", "layer_7")  # in which both towers have something to do
PARTS_OF = {"original": PARTS, "conv6": (*PARTS[:2], "layer_conv6", *PARTS[2:])}
LONG_S, SHORT_S = 60.0, 0.2  # to wait for the other tower: where it must come, and where it cannot


@pytest.fixture(params=RECIPES)
def recipe(request):
    return RECIPES[request.param]


@pytest.fixture
def pair(recipe):
    return AlexNet(recipe, 10, 64).double(), TwoTowers(recipe, 10, 64, ("cpu", "cpu")).double()


@pytest.fixture
def towers():
    return TwoTowers(RECIPES["original"], 10, 64)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(8)
    images = torch.randn(6, 3, 64, 64, dtype=torch.float64, generator=generator) * 60
    return images, torch.randint(0, 10, (6,), generator=generator)


def loss_of(network, batch, *, step=3):
    images, labels = batch
    return F.cross_entropy(network(images.to(next(network.parameters()).dtype), Masks(0, step)), labels)


def joined_gradients(network):
    return {name: torch.cat([part.grad for part in parts]) for name, parts in network.pieces().items()}


def largest_difference(a, b):
    """Of two sets of tensors, relative to the largest number of each tensor."""
    assert a.keys() == b.keys()
    return max(((a[name] - b[name]).abs().max() / b[name].abs().max()).item() for name in b)


class TestSameNetwork:
    def test_losses_and_gradients_agree_in_float64(self, pair, batch):
        losses = [loss_of(network, batch) for network in pair]
        for loss in losses:
            loss.backward()
        one, two = (joined_gradients(network) for network in pair)

        torch.testing.assert_close(losses[1], losses[0], rtol=1e-12, atol=0)
        assert all(gradient.abs().max() > 0 for gradient in one.values())
        assert largest_difference(two, one) < 1e-9

    def test_the_one_graph_in_which_cards_run_agrees_too(self, pair, batch, monkeypatch):
        def one_graph(_threads, both, part, inputs, *masks):
            return [_run_part(tower, part, own, *masks) for tower, own in zip(both, inputs, strict=True)]

        monkeypatch.setattr(towers_module, "_run_at_once", one_graph)
        for network in pair:
            loss_of(network, batch).backward()
        one, two = (joined_gradients(network) for network in pair)

        assert largest_difference(two, one) < 1e-9
        assert pair[1]._threads._pools == []

    def test_outputs_agree_at_test_time(self, pair, batch):
        with torch.inference_mode():
            one, two = (network.eval()(batch[0]) for network in pair)
        with torch.no_grad():
            again = pair[1](batch[0])

        torch.testing.assert_close(two, one, rtol=1e-12, atol=1e-15)
        assert two.is_inference()
        assert torch.equal(two, again)
        assert again.grad_fn is None

    def test_twenty_steps_give_the_same_losses_and_weights(self, pair, recipe, batch):
        images, labels = batch
        steppers = [Stepper(network, recipe, Schedule.of(recipe, steps_per_epoch=1)) for network in pair]
        losses = [[stepper.step(step, images, labels)[0].item() for step in range(20)] for stepper in steppers]
        one, two = (network.state_dict() for network in pair)

        assert losses[1] == pytest.approx(losses[0], rel=1e-9)
        assert losses[0][0] != pytest.approx(losses[0][19], rel=1e-3)
        assert largest_difference(two, one) < 1e-9

    def test_a_frozen_layer_has_no_gradient_and_the_others_keep_theirs(self, pair, batch):
        for network in pair:
            for parameter in (part for name in ("conv1.weight", "conv1.bias") for part in network.pieces()[name]):
                parameter.requires_grad_(False)
            loss_of(network, batch).backward()
        one, two = (
            {name: torch.cat([each.grad for each in parts]) for name, parts in network.pieces().items()
             if parts[0].grad is not None}
            for network in pair
        )  # fmt: skip

        assert "conv2.weight" in one
        assert "conv1.weight" not in one
        assert largest_difference(two, one) < 1e-9

    def test_gradients_can_be_asked_for_instead_of_being_left_in_grad(self, pair, batch):
        images = batch[0].requires_grad_()
        asked = []
        for network in pair:
            pieces = network.pieces()["conv3.weight"]
            of_images, *parts = torch.autograd.grad(loss_of(network, (images, batch[1])), [images, *pieces])
            asked.append({"images": of_images, "conv3.weight": torch.cat(parts)})

        assert largest_difference(*asked) < 1e-9
        assert all(parameter.grad is None for parameter in pair[1].parameters())

    def test_images_may_come_once_for_either_device(self, pair, batch):
        images = batch[0]

        assert torch.equal(pair[1].eval()((images, images.clone())), pair[1](images))

    def test_two_runs_give_the_same_bits(self, recipe, batch):
        def weights():
            network = TwoTowers(recipe, 10, 64)
            stepper = Stepper(network, recipe, Schedule.of(recipe, steps_per_epoch=1))
            for step in range(5):
                stepper.step(step, batch[0].float(), batch[1])
            return network.state_dict()

        first, second = weights(), weights()

        assert all(torch.equal(first[name], second[name]) for name in first)

    def test_in_bf16_both_networks_lose_about_as_much(self, recipe, batch):
        recipe = dataclasses.replace(recipe, precision="bf16")
        exact = loss_of(AlexNet(recipe, 10, 64).double(), batch).item()
        one, two = (loss_of(network(recipe, 10, 64), batch).item() for network in (AlexNet, TwoTowers))

        assert two == pytest.approx(one, rel=2e-3)
        assert two == pytest.approx(exact, rel=2e-2)
        assert two != pytest.approx(exact, rel=1e-7)

    @pytest.mark.parametrize(
        ("mode", "grad", "inference"),
        [(torch.enable_grad, True, False), (torch.no_grad, False, False), (torch.inference_mode, False, True)],
    )
    def test_a_callers_modes_hold_in_the_towers_threads(self, towers, batch, mode, grad, inference):
        seen = []
        for tower in towers.towers:
            tower.conv4.register_forward_hook(
                lambda *_: seen.append((torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
            )
        with mode():
            loss_of(towers, batch)

        assert seen == [(grad, inference)] * 2

    def test_a_callers_autocast_holds_in_the_towers_threads(self, towers, batch):
        with torch.autocast("cpu", torch.bfloat16):
            one = loss_of(AlexNet(RECIPES["original"], 10, 64), batch).item()
            two = loss_of(towers, batch).item()
        in_bf16 = towers.crossed
        exact = loss_of(towers, batch).item()

        assert two == pytest.approx(one, rel=2e-3)
        assert two != pytest.approx(exact, rel=1e-6)
        assert 2 * in_bf16.forward_bytes == (towers.crossed - in_bf16).forward_bytes


class TestState:
    def test_state_dicts_load_in_either_direction(self, pair):
        one, two = pair
        names = list(one.state_dict())
        with torch.no_grad():
            for parameter in one.parameters():
                parameter.add_(1)

        two.load_state_dict(one.state_dict())
        assert list(two.state_dict()) == names
        assert all(torch.equal(two.state_dict()[name], one.state_dict()[name]) for name in names)

        fresh = AlexNet(one.recipe, 10, 64).double()
        fresh.load_state_dict(two.state_dict())
        assert all(torch.equal(fresh.state_dict()[name], one.state_dict()[name]) for name in names)

    def test_both_start_from_the_same_values(self, pair):
        one, two = (network.state_dict() for network in pair)

        assert all(torch.equal(one[name], two[name]) for name in one)

    def test_a_state_of_another_network_is_refused(self, pair):
        other = AlexNet(dataclasses.replace(RECIPES["original"], width=0.5), 10, 64)

        with pytest.raises(RuntimeError, match="size mismatch"):
            pair[1].load_state_dict(other.state_dict())

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
    def test_a_copy_has_threads_and_counts_of_its_own(self, towers, batch, copied):
        expected = loss_of(towers, batch)
        other = copied(towers)

        assert other.crossed == Crossed()
        assert torch.equal(loss_of(other, batch), expected)
        assert other._threads._pools[0] is not towers._threads._pools[0]

    def test_devices_are_where_the_parameters_are(self, towers):
        assert towers.devices == (torch.device("cpu"),) * 2
        assert towers.to("meta").devices == (torch.device("meta"),) * 2


def meeting_in_layer_4(network, timeout_s):
    """Let neither tower pass conv4 before the other is there, forward and backward; it cannot unless both run."""
    forward, backward = (threading.Barrier(2, timeout=timeout_s) for _ in range(2))
    met = []

    def meet(barrier, way):
        barrier.wait()
        met.append((way, threading.current_thread().name))

    def hook(_module, _inputs, output):
        meet(forward, "forward")
        output.register_hook(lambda _: meet(backward, "backward"))

    for tower in network.towers:
        tower.conv4.register_forward_hook(hook)
    return met


def one_after_the_other(_threads, jobs):
    return [job() for job in jobs]


class TestAtOnce:
    def test_both_towers_run_at_once_forward_and_backward(self, towers, batch):
        met = meeting_in_layer_4(towers, LONG_S)

        loss_of(towers, batch).backward()

        names = ["alexshard-tower-0", "alexshard-tower-1"]
        assert sorted(met) == [(way, name) for way in ("backward", "forward") for name in names]

    def test_one_after_the_other_they_would_not_meet(self, towers, batch, monkeypatch):
        meeting_in_layer_4(towers, SHORT_S)
        monkeypatch.setattr(_Threads, "both", one_after_the_other)
        with pytest.raises(threading.BrokenBarrierError):
            loss_of(towers, batch)

        monkeypatch.undo()
        towers = TwoTowers(RECIPES["original"], 10, 64)
        met = meeting_in_layer_4(towers, SHORT_S)
        loss = loss_of(towers, batch)
        monkeypatch.setattr(_Threads, "both", one_after_the_other)
        with pytest.raises(threading.BrokenBarrierError):
            loss.backward()
        assert {way for way, _ in met} == {"forward"}

    @pytest.mark.parametrize("which", PARTS_OF)
    def test_a_trace_shows_every_part_of_either_tower_in_its_thread(self, batch, which):
        with Trace(None) as trace:
            loss_of(TwoTowers(RECIPES[which], 10, 64), batch).backward()
        events = trace.events()
        threads = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
        spans = [(threads[event["tid"]], event["name"]) for event in events if event["ph"] == "X"]

        ways = [(part, way) for part in PARTS_OF[which] for way in ("forward", "backward")]
        assert sorted(spans) == sorted(
            (f"alexshard-tower-{tower}", f"tower {tower} {part} {way}") for tower in (0, 1) for part, way in ways
        )

    def test_each_tower_has_half_of_the_cores_and_other_threads_keep_all(self, batch):
        seen = []
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(6)
            network = TwoTowers(RECIPES["original"], 10, 64)
            for tower in network.towers:
                tower.conv4.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
            loss_of(network, batch).backward()
            new = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
            new.start()
            new.join()
            here = torch.get_num_threads()
        finally:
            torch.set_num_threads(before)

        assert (seen, here) == ([3, 3, 6], 6)

    def test_threads_end_with_the_network(self, towers, batch):
        loss_of(towers, batch)
        threads = [thread for pool in towers._threads._pools for thread in pool._threads]
        assert all(thread.is_alive() for thread in threads)
        towers._threads, _ = _Threads(), gc.collect()
        for thread in threads:
            thread.join(LONG_S)

        assert len(threads) == 2
        assert not any(thread.is_alive() for thread in threads)

    def test_idle_threads_keep_no_process_alive_and_a_forked_one_has_its_own(self):
        done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=300)

        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.split() == ["child", "True", "parent", "True"]


# Torch with one thread: a forked process hangs in OpenMP where its parent has used several, towers or not.
FORKED = """
import dataclasses, os, signal, warnings, torch
from alexshard.trainer import Recipe, TwoTowers
warnings.simplefilter("ignore")  # newer Pythons warn of every fork beside threads
signal.alarm(240)
torch.set_num_threads(1)
network = TwoTowers(dataclasses.replace(Recipe.original(), width=0.125), 10, 64).eval()
images = torch.ones(2, 3, 64, 64)
expected = network(images).sum()
expected.backward()
if (child := os.fork()) == 0:
    signal.alarm(120)  # an alarm is not handed down; without threads of its own it would wait for ever
    again = network(images).sum()
    again.backward()
    print("child", torch.equal(again, expected), flush=True)
    raise SystemExit
assert os.waitpid(child, 0)[1] == 0
print("parent", torch.equal(network(images).sum(), expected))
"""


class Failed(Exception):
    """Told by a tower."""


def failing(towers, *, in_backward=False):
    """Hooks by which these towers fail in layer 4; where both do, tower 0 does not before tower 1 is about to."""
    tower_1_fails = threading.Event()
    if len(towers) == 1:
        tower_1_fails.set()

    def fail(number):
        if number == 1:
            tower_1_fails.set()
        assert tower_1_fails.wait(LONG_S)
        raise Failed(f"tower {number}")

    def failing_one(number):
        def hook(_module, _inputs, output):
            if not in_backward:
                fail(number)
            output.register_hook(lambda _: fail(number))

        return hook

    return [tower.conv4.register_forward_hook(failing_one(tower.tower)) for tower in towers]


class TestErrors:
    @pytest.mark.parametrize(("which", "told"), [((0,), 0), ((1,), 1), ((0, 1), 0)])
    @pytest.mark.parametrize("in_backward", [False, True], ids=["forward", "backward"])
    def test_the_first_towers_error_arrives_and_the_next_pass_is_as_ever(
        self, towers, batch, which, told, in_backward
    ):
        loss_of(towers, batch).backward()
        expected = joined_gradients(towers)
        towers.zero_grad()
        hooks = failing([towers.towers[number] for number in which], in_backward=in_backward)

        with pytest.raises(Failed, match=f"tower {told}"):
            loss_of(towers, batch).backward()
        for hook in hooks:
            hook.remove()
        towers.zero_grad()
        loss_of(towers, batch).backward()

        assert all(torch.equal(joined_gradients(towers)[name], expected[name]) for name in expected)

    def test_a_second_backward_pass_is_refused_in_words(self, towers, batch):
        loss = loss_of(towers, batch)
        loss.backward(retain_graph=True)

        with pytest.raises(RuntimeError, match="run the forward pass again"):
            loss.backward()

    def test_training_without_masks_is_refused_as_by_the_one_device_network(self, towers, batch):
        with pytest.raises(ValueError, match="needs masks"):
            towers(batch[0].float())


class TestCrossing:
    def test_the_formula_is_the_sum_of_the_table(self):
        original = Recipe.original()
        elements = 2 * 128 * 13**2 + 2 * 128 * 6**2 + 2 * 2048 + 2048  # into conv3, fc6, fc7, and fc8 from B alone

        assert elements == 58_624
        assert crossing_bytes(original, 224, 1) == 2 * elements * 4
        assert crossing_bytes(original, 224, 128) == 60_030_976
        assert crossing_bytes(dataclasses.replace(original, precision="bf16"), 224, 128) == 30_015_488

    def test_conv6_has_as_much_sent_as_fc6(self):
        original = Recipe.original()
        elements = 58_624 + 2 * 128 * 6**2

        assert crossing_bytes(dataclasses.replace(original, conv6=True), 224, 128) == 2 * elements * 128 * 4

    @pytest.mark.parametrize(
        ("dtype", "conv6", "each_way"),
        [
            (torch.float32, False, 30_015_488),
            (torch.bfloat16, False, 15_007_744),
            (torch.float32, True, 30_015_488 + 4_718_592),
        ],
    )
    def test_a_step_of_the_whole_network_sends_the_bytes_of_the_table(self, dtype, conv6, each_way):
        recipe = dataclasses.replace(Recipe.original(), conv6=conv6)
        network = TwoTowers(recipe, 1000, 224, ("meta", "meta")).to(dtype)
        images = torch.empty(128, 3, 224, 224, device="meta", dtype=dtype)

        loss_of(network, (images, torch.zeros(128, dtype=torch.long, device="meta"))).backward()

        assert network.crossed == Crossed(each_way, each_way, 2 * images.nbytes)

    @pytest.mark.parametrize("side", [64, 96, 112])
    @pytest.mark.parametrize("precision", ["fp32", "bf16"])
    def test_each_step_on_the_cpu_counts_what_the_formula_says(self, recipe, side, precision):
        recipe = dataclasses.replace(recipe, precision=precision)
        network = TwoTowers(recipe, 10, side)
        batch = torch.randn(2, 3, side, side), torch.tensor([3, 8])
        counts = []
        for step in range(2):
            before = network.crossed
            loss_of(network, batch, step=step).backward()
            counts.append(network.crossed - before)

        half = crossing_bytes(recipe, side, 2) // 2
        assert counts == [Crossed(half, half, 2 * batch[0].nbytes)] * 2

    def test_a_forward_pass_alone_sends_activations_alone(self, towers, batch):
        with torch.inference_mode():
            towers.eval()(batch[0].float())

        assert towers.crossed.forward_bytes == crossing_bytes(RECIPES["original"], 64, 6) // 2
        assert towers.crossed.backward_bytes == 0

    @pytest.mark.parametrize("conv6", [False, True], ids=["five", "six"])
    def test_only_conv3_conv6_and_the_fc_layers_read_what_crosses(self, monkeypatch, conv6):
        sent = []

        def sending(self, x, *, to):
            sent.append((tuple(x.shape[1:]), to))
            return send(self, x, to=to)

        send = TwoTowers._sent
        monkeypatch.setattr(TwoTowers, "_sent", sending)
        recipe = dataclasses.replace(Recipe.original(), conv6=conv6)
        network = TwoTowers(recipe, 1000, 224, ("meta", "meta")).eval()
        network(torch.empty(1, 3, 224, 224, device="meta"))

        below_conv3, below_fc6, units = (128, 13, 13), (128, 6, 6), (2048,)
        below_conv6 = [below_fc6] if conv6 else []  # the same shape
        both_ways = [(shape, to) for shape in (below_conv3, *below_conv6, below_fc6, units) for to in (0, 1)]
        assert sorted(sent) == sorted([*both_ways, (units, 0)])

    @pytest.mark.parametrize("which", ["original", "conv6"])
    def test_where_nothing_is_let_across_neither_tower_knows_of_the_other(self, batch, monkeypatch, which):
        """So nothing crosses but what is counted: not by a shared layer, nor a gradient."""
        network = TwoTowers(RECIPES[which], 10, 64).double()
        monkeypatch.setattr(_Crossing, "apply", lambda _meter, x: torch.zeros_like(x))
        hidden = []
        network.towers[1].fc7.register_forward_hook(lambda _module, _inputs, units: hidden.append(units.detach()))
        losses = []
        for changed in (None, 1, 0):
            if changed is not None:
                with torch.no_grad():
                    for parameter in network.towers[changed].parameters():
                        parameter.mul_(1.5)
            losses.append(loss_of(network, batch))
        losses[-1].backward()

        assert losses[1].item() == losses[0].item() != losses[2].item()
        assert torch.equal(hidden[2], hidden[1])
        assert not torch.equal(hidden[1], hidden[0])
        assert all(
            parameter.grad is None or not parameter.grad.any() for parameter in network.towers[1].parameters()
        )
        assert all(parameter.grad.any() for parameter in network.towers[0].parameters())
