from __future__ import annotations

import pytest
from alexshard.shards import AlexshardError, ShardName, Split, is_key, safe_key
from hypothesis import given
from hypothesis import strategies as st

names = st.builds(ShardName, st.sampled_from(Split), st.integers(0, 999_999))


@given(name=names)
def test_a_shard_name_is_what_its_text_parses_to(name: ShardName) -> None:
    assert ShardName.parse(str(name)) == name


@given(first=names, second=names)
def test_shard_names_sort_as_their_files_do(first: ShardName, second: ShardName) -> None:
    if first.split == second.split:
        assert (first < second) == (str(first) < str(second))


@pytest.mark.parametrize(
    "text", ["train-42.tar", "train-000042.idx", "holdout-000042.tar", "train-000042.tar\n", ""]
)
def test_what_is_no_shard_name_is_refused(text: str) -> None:
    with pytest.raises(AlexshardError, match="no shard name"):
        ShardName.parse(text)


@given(text=st.text())
def test_any_text_gives_a_key(text: str) -> None:
    assert is_key(safe_key(text))


@given(text=st.text(alphabet="abcXYZ019_-", min_size=1, max_size=80).filter(lambda t: not t.startswith("-")))
def test_a_text_that_is_a_key_stays_as_it_is(text: str) -> None:
    assert safe_key(text) == text


@pytest.mark.parametrize("text", ["", "-a", "a.b", "a/b", "a b", "é", "a" * 81, "a\n"])
def test_dots_folders_spaces_and_leading_dashes_make_no_key(text: str) -> None:
    assert not is_key(text)
