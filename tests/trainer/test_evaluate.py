"""Evaluation on a real loader: every image once, views averaged, nothing but numbers."""

import dataclasses
import functools
import math
import operator

import pytest
import torch
from alexshard.pipeline import Loader
from alexshard.shards import AlexshardError, NoSuchSplit
from alexshard.trainer import AlexNet, Machine, Recipe, evaluate, evaluation_loader, tally
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SMALL = dataclasses.replace(Recipe.original(), width=0.125, batch_size=16)
CPU = Machine.choose("cpu")


@pytest.fixture
def network():
    network = AlexNet(SMALL, 10, 64)
    with torch.no_grad():
        network.fc8.weight.mul_(30)  # far from a constant answer
    return network


def test_one_view_is_the_centre_of_every_image(network, small_set):
    with Loader(small_set, "val", 7, augment=None) as loader:
        batches = [(network.eval()(batch.images).detach(), batch.labels) for batch in loader]
    logits, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    order = logits.argsort(1, descending=True)

    with evaluation_loader(SMALL, small_set, "val", CPU) as loader:
        found = evaluate(network, loader)

    assert found.samples == len(labels) == 40
    assert found.loss == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    assert found.top1_error == pytest.approx((order[:, 0] != labels).double().mean().item(), abs=1e-12)
    assert found.top5_error == pytest.approx(
        (order[:, :5] != labels[:, None]).all(1).double().mean().item(), abs=1e-12
    )


def test_ten_views_are_the_mean_of_their_softmaxes(network, small_set):
    with Loader(small_set, "val", 8, augment=None, views=10) as loader:
        found = [
            (
                torch.stack([network.eval()(view) for view in batch.images.unbind(1)]).softmax(2).mean(0),
                batch.labels,
            )
            for batch in loader
        ]
    probabilities, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
    nll = -probabilities.gather(1, labels[:, None]).log().mean().item()

    with evaluation_loader(SMALL, small_set, "val", CPU, views=10) as loader:
        evaluation = evaluate(network, loader)

    assert (evaluation.views, evaluation.samples) == (10, 40)
    assert evaluation.loss == pytest.approx(nll, rel=1e-5)
    assert evaluation.top1_error == pytest.approx(
        (probabilities.argmax(1) != labels).double().mean().item(), abs=1e-12
    )


def test_a_constant_answer_is_chance(network, small_set):
    with torch.no_grad():
        network.fc8.weight.zero_()
        network.fc8.bias.zero_()

    with evaluation_loader(SMALL, small_set, "val", CPU) as loader:
        found = evaluate(network, loader)

    assert found.loss == pytest.approx(math.log(10))
    assert (found.top1_error, found.top5_error) == pytest.approx((0.9, 0.5))


def test_outputs_that_are_no_numbers_are_an_error_not_an_answer(network, small_set):
    with torch.no_grad():
        network.fc8.bias[3] = math.nan

    with (
        evaluation_loader(SMALL, small_set, "val", CPU) as loader,
        pytest.raises(AlexshardError, match="40 outputs of the network are not finite"),
    ):
        evaluate(network, loader)


def test_a_split_that_is_not_there_is_named(small_set):
    with pytest.raises(NoSuchSplit, match="no split 'holdout'"):
        evaluation_loader(SMALL, small_set, "holdout", CPU)


def test_labels_are_needed(small_set):
    splits = dict(small_set.manifest.splits)
    splits["val"] = dataclasses.replace(splits["val"], labelled=False)
    unlabelled = dataclasses.replace(small_set, manifest=dataclasses.replace(small_set.manifest, splits=splits))

    with pytest.raises(AlexshardError, match="val has no labels"):
        evaluation_loader(SMALL, unlabelled, "val", CPU)


@pytest.fixture(scope="module")
def judged(small_set):
    """A network without ties or near ones, and the tally of the whole split in batches of 1."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = AlexNet(SMALL, 10, 64)
        with torch.no_grad():
            network.fc8.weight.mul_(30)
    with Loader(small_set, "val", 1, augment=None, order="stored", threads=1) as loader:
        return network, tally(network, loader)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch_size=st.integers(1, 50), world_size=st.sampled_from([1, 2, 4]), pad_last=st.booleans())
def test_ranks_and_batches_of_any_size_count_what_one_pass_counts(
    judged, small_set, batch_size, world_size, pad_last
):
    network, whole = judged
    parts = []
    for rank in range(world_size):
        with Loader(
            small_set,
            "val",
            batch_size,
            augment=None,
            order="stored",
            rank=rank,
            world_size=world_size,
            pad_last=pad_last,
            threads=1,
        ) as loader:
            parts.append(tally(network, loader))
    together = functools.reduce(operator.add, parts)

    assert together.samples == whole.samples == 40
    assert together.top1_credit == pytest.approx(whole.top1_credit, abs=1e-12)
    assert together.top5_credit == pytest.approx(whole.top5_credit, abs=1e-12)
    assert together.nll == pytest.approx(whole.nll, rel=1e-5)  # float32 rounds otherwise in other batches


def test_a_filled_up_batch_counts_along_to_the_number_of_images(network, small_set):
    counted = []
    with Loader(small_set, "val", 16, augment=None, order="stored", pad_last=True) as loader:
        found = evaluate(network, loader, on_images=counted.append)

    assert (counted, found.samples) == ([16, 16, 8], 40)


def test_a_rank_without_a_sample_is_no_error_until_all_have_none(network, small_set):
    with Loader(small_set, "val", 16, augment=None, order="stored") as loader:
        empty = dataclasses.replace(tally(network, loader), samples=0, nll=0.0, top1_credit=0.0, top5_credit=0.0)

    assert (empty + empty).samples == 0
    with pytest.raises(AlexshardError, match="the split val has no samples"):
        (empty + empty).evaluation("val")
