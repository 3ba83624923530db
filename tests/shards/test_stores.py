"""What is kept on this machine about an address has a name of its own."""

from __future__ import annotations

import pytest
from alexshard.shards import local_name

AT = "https://host/get?file=a"


@pytest.mark.parametrize(
    "other", ["https://host/get?file=b", "https://host/get?file=a&version=2", "https://host/get", "https://host/a"]
)
def test_addresses_whose_queries_choose_other_sets_have_other_names(other: str) -> None:
    assert local_name(other) != local_name(AT)


@pytest.mark.parametrize(
    "secret",
    [
        "token=one",
        "access_token=one",
        "X-Amz-Signature=one&X-Amz-Date=20261121T000000Z&X-Amz-Credential=a%2Fb",
        "X-Goog-Signature=one&x-goog-expires=60",
        "sv=2024&sp=r&se=2026-11-21&sig=one",
        "Expires=1&Signature=one&Key-Pair-Id=K",
        "password=one",
        "api_key=one",
    ],
)
def test_what_lets_somebody_in_is_no_part_of_a_name(secret: str) -> None:
    assert local_name(f"{AT}&{secret}") == local_name(AT)
    assert local_name(f"{AT}&{secret.replace('one', 'two').replace('2026', '2027')}") == local_name(AT)
