"""The presets' constants, and recipes as values: changed, refused, written and read back."""

import dataclasses
import json

import pytest
from alexshard.shards import WrongCall
from alexshard.trainer import PRESETS, SCHEDULES, Recipe, description, differences
from hypothesis import given
from hypothesis import strategies as st


def test_original_has_the_constants_of_the_page():
    recipe = Recipe.original()

    assert (recipe.lrn_n, recipe.lrn_k, recipe.lrn_a) == (5, 2, 1e-4 / 5)
    assert (recipe.same_map_n, recipe.same_map_k, recipe.same_map_a) == (5, 1, 0.001 / 25)
    assert recipe.layer1_order == "lrn-pool-relu"
    assert recipe.init_std == (0.01, 0.01, 0.03, 0.03, 0.03, 0.01, 0.01, 0.01)
    assert (recipe.augment, recipe.order, recipe.mean, recipe.mean_crop) == (
        "original",
        "stored",
        "image",
        "centre",
    )
    assert (recipe.epochs, recipe.schedule_epochs) == (93, 93)


def test_paper_has_the_constants_of_the_text():
    recipe = Recipe.paper()

    assert (recipe.lrn_n, recipe.lrn_k, recipe.lrn_a) == (5, 2, 1e-4)
    assert recipe.same_map_a is None
    assert recipe.layer1_order == "relu-lrn-pool"
    assert recipe.init_std == (0.01,) * 8
    assert (recipe.augment, recipe.order, recipe.mean, recipe.mean_crop) == ("paper", "global", "image", "own")
    assert (recipe.epochs, recipe.schedule_epochs) == (90, 90)


@pytest.mark.parametrize("preset", ["original", "paper"])
def test_what_the_presets_share_is_that_of_section_5(preset):
    recipe = PRESETS[preset]()

    assert (recipe.batch_size, recipe.momentum, recipe.weight_decay) == (128, 0.9, 0.0005)
    assert (recipe.dropout, recipe.width, recipe.conv1_pad) == (True, 1, "bottom-right")
    assert recipe.init_bias == (0, 1, 0, 1, 1, 1, 1, 0)
    assert recipe.learning_rate == 0.01


@pytest.mark.parametrize("preset", PRESETS)
def test_a_recipe_survives_json(preset):
    recipe = dataclasses.replace(PRESETS[preset](), width=0.25, max_steps=7, seed=2**32 - 1)

    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


@pytest.mark.parametrize("change", [{"colour": "red"}, {"weight_rates": [{"after_weeks": 1}]}, {"preset": "vgg"}])
def test_a_recipe_of_another_kind_is_refused(change):
    with pytest.raises(WrongCall):
        Recipe.from_json(Recipe.original().to_json() | change)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("width", 0),
        ("width", float("nan")),
        ("width", float("inf")),
        ("width", 1e12),
        ("epochs", 1.5),
        ("epochs", 10**400),
        ("batch_size", 8.0),
        ("momentum", 2),
        ("momentum", float("nan")),
        ("weight_decay", -1),
        ("lrn_a", float("inf")),
        ("lrn_k", 0),
        ("init_bias", (0, float("nan"), 0, 1, 1, 1, 1, 0)),
        ("init_bias", (1e300,) * 8),
        ("init_std", (-0.01,) * 8),
        ("batch_size", 0),
        ("epochs", 0),
        ("max_steps", 0),
        ("seed", -1),
        ("seed", 2**32),
        ("augment", "torchvision"),
        ("order", "random"),
        ("window", 0),
        ("window", 4),  # of the order windowed alone
        ("conv1_pad", "same"),
        ("init_std", (0.01,)),
        ("weight_rates", ()),
        ("weight_rates", Recipe.original().weight_rates[1:]),
        ("weight_rates", ((0, float("inf")),)),
        ("weight_rates", ((0, 0.01), (float("nan"), 0.001))),
        ("weight_rates", ((0, 0.01), (5, 0.001), (5, 0.0001))),
        ("weight_rates", ((0, 0.0),)),
        ("weight_rates", 0.01),
        ("weight_rates", "fast"),
        ("bias_rates", ((1, 0.02),)),
        ("layer_rates", (("conv9.weight", ((0, 0.01),)),)),
        ("layer_rates", {"conv1.weight": 0.01}),
        ("jitter_epochs", -1),
        ("width", "wide"),
        ("width", True),
        ("seed", True),
        ("dropout", 1),
        ("dropout", "no"),
        ("init_from", 7),
        ("init_std", 0.01),
        ("epochs", None),
        ("conv6_std", -1),
        ("patience", 0),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(field, value):
    with pytest.raises(WrongCall, match="^" + field.replace("_", " ")) as refused:
        dataclasses.replace(Recipe.original(), **{field: value})

    assert refused.value.exit_code == 2


def test_another_first_rate_scales_every_rate_and_thaws_nothing():
    segments = Recipe.original().with_learning_rate(0.005).schedule

    assert [s.rates["weights"] for s in segments] == pytest.approx([5e-3, 5e-4, 5e-5, 5e-5, 5e-5, 5e-6])
    assert [s.rates["biases"] for s in segments] == pytest.approx([0.01, 0.001, 0.001, 0.001, 0.001, 0.001])
    assert [s.rates["conv1.weight"] for s in segments[-2:]] == [None, None]
    assert [s.jitter for s in segments] == [True, True, True, False, False, False]


@given(rate=st.floats(1e-12, 1e6))
def test_a_first_rate_is_what_was_asked_for_and_twice_is_as_once(rate):
    recipe = Recipe.original().with_learning_rate(rate)

    assert recipe.learning_rate == recipe.schedule[0].rates["conv1.weight"] == rate
    assert recipe.with_learning_rate(rate) == recipe
    assert [s.rates["conv1.weight"] for s in recipe.schedule[-2:]] == [None, None]


def test_a_constant_rate_is_the_first_one_to_the_end():
    assert Recipe.original().with_constant_rate().schedule == Recipe.original().schedule[:1]
    assert len(Recipe.paper().with_schedule("plateau").with_constant_rate().schedule) == 1


def test_a_smaller_bias_replaces_the_ones_alone_and_the_last_word_holds():
    recipe = Recipe.paper().with_initial_bias(0.5).with_initial_bias(0.1)

    assert recipe.init_bias == (0, 0.1, 0, 0.1, 0.1, 0.1, 0.1, 0)
    later = dataclasses.replace(recipe, init_bias=(0, 1, 0, 1, 1, 1, 1, -7))
    assert later.with_initial_bias(0.1).init_bias == (0, 0.1, 0, 0.1, 0.1, 0.1, 0.1, -7)


def test_differences_name_each_field_with_both_values():
    other = dataclasses.replace(Recipe.original(), width=0.5, seed=3)

    assert differences(Recipe.original(), other) == ["width: 1.0 → 0.5", "seed: 0 → 3"]


def test_a_window_belongs_to_the_order_windowed_and_survives_json():
    recipe = dataclasses.replace(Recipe.paper(), order="windowed", window=8)

    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
    assert differences(recipe, dataclasses.replace(recipe, window=None)) == ["window: 8 → None"]
    with pytest.raises(WrongCall, match=r"window is 8, and must be left out with the order global"):
        dataclasses.replace(recipe, order="global")


def test_a_recipe_of_a_version_without_windows_is_read():
    fields = Recipe.paper().to_json()
    del fields["window"]

    assert Recipe.from_json(fields) == Recipe.paper()


def test_an_unknown_field_is_refused_with_the_nearest_name():
    with pytest.raises(WrongCall, match=r"no field 'widht'[\s\S]*did you mean width\?") as refused:
        Recipe.original().with_fields({"widht": 0.5})

    assert refused.value.exit_code == 2


def test_values_as_json_and_toml_have_them_become_those_of_the_recipe():
    recipe = Recipe.original().with_fields(
        {"width": 1, "weight_rates": [[0, 0.01], [5, 0]], "layer_rates": {"fc8.weight": [[0, 0.1]]}}
    )

    assert (recipe.width, recipe.weight_rates) == (1.0, ((0.0, 0.01), (5.0, None)))
    assert recipe.layer_rates == (("fc8.weight", ((0.0, 0.1),)),)
    assert hash(recipe) == hash(Recipe.from_json(json.loads(json.dumps(recipe.to_json()))))


def test_every_field_that_is_not_its_own_explanation_says_what_it_is_and_all_but_a_few_their_source():
    told = {field.name: description(field) for field in dataclasses.fields(Recipe)}

    assert {name for name, (_, source) in told.items() if not source} == {"max_steps"}
    assert {name for name, (about, _) in told.items() if not about} == {"same_map_k", "momentum", "epochs"}


def test_the_named_schedules_of_the_presets_are_theirs():
    for preset, name in (("original", "145-2010"), ("paper", "paper"), ("dexp", "dexp")):
        assert PRESETS[preset]().with_schedule(name) == PRESETS[preset]()
    assert {"120", "131", "135", "137", "145", "145-half", "147", "148", "150", "plateau"} <= SCHEDULES.keys()
