"""Names and sizes as messages show them."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""`text` with everything escaped that a terminal would not show as itself, so that a name cannot act on it.

    >>> print(printable("two words.JPEG"), printable("a\x1b[31m\nb"), printable("caf\udce9"))
    two words.JPEG a\x1b[31m\nb caf\udce9
    """
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def byte_size(number: float) -> str:
    """Bytes in decimal units.

    >>> byte_size(132_000_000), byte_size(999)
    ('132.0 MB', '999 B')
    """
    units = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
    return next((f"{number / size:.1f} {unit}" for size, unit in units if number >= size), f"{number:.0f} B")
