"""Which single bit was flipped, told by a CRC-32 alone.

The CRC-32 of a text and of the same text with one bit flipped differ by a value that depends on how far that bit
lies from the end, and on nothing else: the register of the CRC after so many steps from 1. Its polynomial is
primitive, so up to 2**32 - 2 bits (half a gigabyte) no two distances give the same value.

legend  a 32-bit word is a polynomial over GF(2), the coefficient of x**0 in its highest bit
source  Shanks 1971, baby and giant steps, for the discrete logarithm
"""

from __future__ import annotations

import math

_POLYNOMIAL = 0xEDB88320  # of zlib, gzip, PNG
_ONE = 1 << 31
_MOST_BITS = 2**32 - 2


def flipped_bit(found: int, promised: int, size: int) -> tuple[int, int] | None:
    """Byte and bit (0 the lowest) whose flip makes CRC-32 `found` of `promised` in `size` bytes, where one does.

    >>> import zlib
    >>> flipped_bit(zlib.crc32(b"shard, shArd"), zlib.crc32(b"shard, shard"), 12)
    (9, 5)
    """
    bits = 8 * size
    if found == promised or not 0 < bits <= _MOST_BITS:
        return None
    # The difference is 1 stepped k times; so j steps more meet a multiple of the giant step.
    giant = math.isqrt(bits) + 1
    word = found ^ promised
    ahead: dict[int, int] = {}
    for j in range(giant):
        ahead.setdefault(word, j)
        word = _step(word)
    factor, word = _power_of_x(giant), 1
    for multiple in range(giant, bits + giant, giant):
        word = _product(word, factor)
        if word in ahead and 0 < multiple - ahead[word] <= bits:
            from_end = multiple - ahead[word] - 1
            return size - 1 - from_end // 8, 7 - from_end % 8
    return None


def _step(word: int) -> int:
    """Times x, as the register takes one bit."""
    return word >> 1 ^ (_POLYNOMIAL if word & 1 else 0)


def _product(a: int, b: int) -> int:
    product = 0
    while a:
        if a & _ONE:
            product ^= b
        a = a << 1 & 0xFFFFFFFF
        b = _step(b)
    return product


def _power_of_x(exponent: int) -> int:
    power, square = _ONE, _step(_ONE)
    while exponent:
        if exponent & 1:
            power = _product(power, square)
        square = _product(square, square)
        exponent >>= 1
    return power
