"""Skips a test whose programs this machine can't build, and says why: Go is missing, or its modules can't be had."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.kubernetes import golang


@contextmanager
def skipped_if_unbuilt() -> Iterator[None]:
    try:
        yield
    except golang.Unbuilt as why:
        pytest.skip(str(why))
