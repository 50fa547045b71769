"""Finding things by id, with EC2's own complaints about ids that are malformed or that nobody has."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Generic, TypeVar

from ipamd.sim.ec2.rules.errors import Ec2Error

_DIGITS: Final = re.compile(r"[0-9a-f]{8}|[0-9a-f]{17}")

T = TypeVar("T")


class Registry(Generic[T]):
    """Resources of one kind by id, in the order of their creation.

    `noun` is EC2's name of the id ("networkInterface"); `code` begins its error codes ("InvalidNetworkInterfaceID").
    """

    def __init__(self, prefix: str, noun: str, code: str) -> None:
        self._prefix = prefix
        self._noun = noun
        self._code = code
        self._items: dict[str, T] = {}

    def __iter__(self) -> Iterator[T]:
        return iter(self._items.values())

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, id: str) -> bool:
        return id in self._items

    def of(self, items: Iterable[tuple[str, T]]) -> Registry[T]:
        """Another registry of the same kind."""
        other = Registry[T](self._prefix, self._noun, self._code)
        other._items = dict(items)
        return other

    def add(self, id: str, item: T) -> None:
        self._items[id] = item

    def remove(self, id: str) -> None:
        del self._items[id]

    def get(self, id: str) -> T:
        return self.get_all([id])[0]

    def get_all(self, ids: Iterable[str]) -> list[T]:
        """All or an error that names each missing one, as EC2's Describe calls do."""
        wanted = list(dict.fromkeys(ids))
        for id in wanted:
            prefix, _, digits = id.rpartition("-")
            if prefix != self._prefix or not _DIGITS.fullmatch(digits):
                raise Ec2Error(f"{self._code}.Malformed", f'Invalid id: "{id}" (expecting "{self._prefix}-...")')
        if missing := [id for id in wanted if id not in self._items]:
            raise self.not_found(missing)
        return [self._items[id] for id in wanted]

    def not_found(self, ids: Sequence[str]) -> Ec2Error:
        plural = len(ids) > 1
        return Ec2Error(
            f"{self._code}.NotFound",
            f"The {self._noun} ID{'s' * plural} '{', '.join(ids)}' do{'es' * (not plural)} not exist",
        )
