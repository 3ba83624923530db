from __future__ import annotations

import zlib

import pytest
from alexshard.shards.crc import flipped_bit
from hypothesis import given
from hypothesis import strategies as st


@given(st.binary(min_size=1, max_size=2000), st.data())
def test_a_crc32_names_the_byte_and_the_bit_that_was_flipped(text: bytes, data: st.DataObject) -> None:
    byte, bit = data.draw(st.integers(0, len(text) - 1)), data.draw(st.integers(0, 7))
    damaged = bytearray(text)
    damaged[byte] ^= 1 << bit

    assert flipped_bit(zlib.crc32(damaged), zlib.crc32(text), len(text)) == (byte, bit)


@pytest.mark.parametrize("byte", [0, 31_415_926, 99_999_999])
def test_in_a_hundred_megabytes_too(byte: int) -> None:
    text = bytearray(100_000_000)
    promised = zlib.crc32(text)
    text[byte] = 0x10

    assert flipped_bit(zlib.crc32(text), promised, len(text)) == (byte, 4)


def test_a_sound_text_and_one_that_can_hold_no_such_bit_name_none() -> None:
    assert flipped_bit(7, 7, 100) is None
    assert flipped_bit(7, 8, 0) is None
    # Two flipped bits of so few stand for one that would lie beyond the text.
    assert flipped_bit(zlib.crc32(b"ab"), zlib.crc32(b"cd"), 2) is None
