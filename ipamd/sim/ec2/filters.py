"""Describe calls: filters and pages. AWS, "Filter and list your resources" and "Pagination" of the EC2 API."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar

from ipamd.sim.ec2.rules import Ec2Error

T = TypeVar("T")
Fields = Mapping[str, Callable[[T], Iterable[str]]]  # filter name -> the values of an item; any may match

_PAGE: Final = 1000
# Of one call, all filters together, as others have met it (gjbae1212/gossm#47, ansible/ansible#16184); and of
# one value (ansible/ansible#84327).
_MOST_VALUES: Final = 200
_LONGEST_VALUE: Final = 255


def select(
    items: Iterable[T],
    filters: Sequence[Mapping[str, Any]],
    fields: Fields[T],
    tags: Callable[[T], Mapping[str, str]] | None = None,
) -> list[T]:
    """The items that every filter lets through: one of its values (with * and ?) equals one of the item's.

    `tags` gives an item's tags, for the filters tag:KEY and tag-key. Raises `Ec2Error` for an unknown filter, and for
    more than EC2 takes.
    """
    _check_size([value for condition in filters for value in condition.get("Values", ())])
    chosen = list(items)
    for condition in filters:
        name = condition.get("Name", "")
        patterns = [_pattern(value) for value in condition.get("Values", ())]
        if not patterns:
            raise Ec2Error("InvalidParameterValue", f"The filter '{name}' has no values")
        values = _values(name, fields, tags)
        chosen = [i for i in chosen if any(pattern.fullmatch(v) for v in values(i) for pattern in patterns)]
    return chosen


def _check_size(values: Sequence[str]) -> None:
    if len(values) > _MOST_VALUES:
        raise Ec2Error(
            "FilterLimitExceeded", f"The maximum number of filter values specified on a single call is {_MOST_VALUES}"
        )
    if any(len(value) > _LONGEST_VALUE for value in values):
        raise Ec2Error("FilterLimitExceeded", f"The maximum length for a filter value is {_LONGEST_VALUE} characters")


def _values(
    name: str, fields: Fields[T], tags: Callable[[T], Mapping[str, str]] | None
) -> Callable[[T], Iterable[str]]:
    if tags is not None and name == "tag-key":
        return tags
    if tags is not None and name.startswith("tag:"):
        key = name.removeprefix("tag:")
        return lambda item: [tags(item)[key]] if key in tags(item) else []
    try:
        return fields[name]
    except KeyError:
        raise Ec2Error("InvalidParameterValue", f"The filter '{name}' is invalid") from None


def _pattern(text: str) -> re.Pattern[str]:
    """* and ? are wildcards, and a backslash takes that from the next character."""
    parts = re.findall(r"\\.|.", text, re.DOTALL)
    wild = {"*": ".*", "?": "."}
    return re.compile("".join(wild.get(p) or re.escape(p[-1]) for p in parts), re.DOTALL)


def page(items: Sequence[T], limit: int | None, token: str) -> tuple[Sequence[T], str | None]:
    """One page of at most `limit` items (None: 1000), and the token of the next one (None: it was the last)."""
    start = _decode_token(token)
    end = start + (_PAGE if limit is None else limit)
    return items[start:end], _encode_token(end) if end < len(items) else None


def _encode_token(position: int) -> str:
    return base64.urlsafe_b64encode(b"after %d" % position).decode()


def _decode_token(token: str) -> int:
    if not token:
        return 0
    try:
        word, _, position = base64.urlsafe_b64decode(token).partition(b" ")
        if word == b"after":
            return int(position)
    except (binascii.Error, ValueError):
        pass
    raise Ec2Error("InvalidNextToken", "The specified NextToken is not valid.")
