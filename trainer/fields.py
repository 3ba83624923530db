"""Fields of a recipe: what each is, where it comes from, and values of JSON and TOML made into its type."""

from __future__ import annotations

import dataclasses
import difflib
import reprlib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, Literal

from ..shards import WrongCall


def told(about: str, source: str, default: Any = dataclasses.MISSING) -> Any:
    """A field of a dataclass with words about it and the section it is from; `description` gives them back."""
    metadata = {"about": about, "source": source}
    return dataclasses.field(default=default, metadata=metadata)


def description(field: dataclasses.Field[Any]) -> tuple[str, str]:
    """What `told` was told of a field: words and source."""
    return field.metadata["about"], field.metadata["source"]


def nearest(name: str, names: Iterable[str]) -> str:
    """The one that looks most like `name`."""
    return difflib.get_close_matches(name, list(names), n=1, cutoff=0.0)[0]


def choices(kind: type, name: str) -> tuple[Any, ...]:
    """The words that a field may be, where its type is a choice of words."""
    return tuple(word for part in _parts(_hints(kind)[name]) for word in _words(part))


def plain(value: Any) -> Any:
    """Lists for tuples, all the way down."""
    return [plain(item) for item in value] if isinstance(value, tuple) else value


class _NotIt(Exception):
    """A value is of another kind; says which was wanted."""


def typed(kind: type, name: str, value: Any) -> Any:
    """`value` as the type of that field: tuples for lists, floats for whole numbers.

    Raises:
        WrongCall: it is of another kind.
    """
    wanted = []
    for part in _parts(_hints(kind)[name]):
        try:
            return _made(part, value)
        except _NotIt as error:
            wanted.append(str(error))
    raise WrongCall(f"{name.replace('_', ' ')} is {reprlib.repr(value)}, and must be {' or '.join(wanted)}")


def _made(kind: Any, value: Any) -> Any:
    if kind is type(None):
        if value is None:
            return None
        raise _NotIt("none")
    if words := _words(kind):
        if isinstance(value, str) and value in words:
            return value
        raise _NotIt(f"one of {', '.join(words)}")
    if kind is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            try:
                return float(value)
            except OverflowError:
                pass
        raise _NotIt("a number")
    if kind is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        raise _NotIt("a whole number")
    if kind is bool:
        if isinstance(value, bool):
            return value
        raise _NotIt("true or false")
    if kind is str:
        if isinstance(value, str):
            return value
        raise _NotIt("text")
    return _made_tuple(kind, value)


def _made_tuple(kind: Any, value: Any) -> Any:
    """Of the shapes that recipes have: numbers, rates, rates by name."""
    inner = typing.get_args(kind)
    if inner == (float, ...):
        if isinstance(value, Sequence) and not isinstance(value, str):
            return tuple(_made(float, item) for item in value)
        raise _NotIt("a list of numbers")
    pair = typing.get_args(inner[0])
    if pair[0] is str:  # rates by name
        named = value.items() if isinstance(value, Mapping) else value
        try:
            return tuple(sorted((_made(str, name), _made(pair[1], rates)) for name, rates in named))
        except (TypeError, ValueError):
            raise _NotIt("lists of pairs [moment, rate] by parameter, as conv1.weight") from None
    try:
        return tuple((_made(float, moment), _rate(rate)) for moment, rate in value)
    except (TypeError, ValueError, _NotIt):
        raise _NotIt("a list of pairs [moment, rate]") from None


def _rate(value: Any) -> float | None:
    """A rate of 0 freezes, as one that is not there: TOML has no word for nothing."""
    # Its kind is looked at first: what a checkpoint brings may not know whether it is 0.
    return None if value is None else _made(float, value) or None


@cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _parts(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a type."""
    return typing.get_args(hint) if isinstance(hint, types.UnionType) or _is_union(hint) else (hint,)


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) is typing.Union


def _words(kind: Any) -> tuple[Any, ...]:
    return typing.get_args(kind) if typing.get_origin(kind) is Literal else ()
