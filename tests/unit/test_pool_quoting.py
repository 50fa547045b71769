"""Words of others in messages: bounded, and without power over a terminal."""

from __future__ import annotations

import pytest

from ipamd.pool.model import CloudErrorKind, CloudFailure
from ipamd.pool.quoting import LONGEST, cut, in_ascii, quoted, shown


@pytest.mark.parametrize(
    ("text", "ascii_form", "shown_form"),
    [
        ("web-0 ~", "web-0 ~", "web-0 ~"),
        ("a\x1b[31m", "a\\x1b[31m", "a\\x1b[31m"),
        ("a\x7f\n", "a\\x7f\\n", "a\\x7f\\n"),
        ("größe", "gr\\xf6\\xdfe", "größe"),
        ("\u202eevil", "\\u202eevil", "\\u202eevil"),
        ("", "", ""),
    ],
)
def test_text_is_escaped_where_it_could_move_a_cursor(text: str, ascii_form: str, shown_form: str) -> None:
    assert (in_ascii(text), shown(text)) == (ascii_form, shown_form)


def test_long_text_is_cut_and_says_how_long_it_was() -> None:
    assert cut("a" * LONGEST) == "a" * LONGEST
    assert cut("a" * (LONGEST + 1)) == "a" * LONGEST + f"... ({LONGEST + 1} characters)"
    assert cut("abcdef", 4) == "abcd... (6 characters)"


def test_text_that_no_encoder_takes_is_escaped() -> None:
    assert cut("a\udcff") == "a\\udcff" and cut("größe") == "größe"


@pytest.mark.parametrize(
    ("value", "form"),
    [
        ("web", "'web'"),
        ("a" * 200, repr("a" * 200)),
        ("a" * 201, f"{'a' * 200!r}... (201 characters)"),
        ([1, "b"], "[1, 'b']"),
        ([1, 2, 3, 4], "[1, 2, 3, 4]"),
        ([1, 2, 3, 4, 5], "a list of 5"),
        ([{}], "a list of 1"),
        ([[1]], "a list of 1"),
        ({"a": 1}, "an object with 1 keys"),
        (None, "None"),
        (1 << 800, f"{1 << 800}"[:200] + "... (241 characters)"),
    ],
)
def test_unexpected_value_is_quoted_within_a_line(value: object, form: str) -> None:
    assert quoted(value) == form


@pytest.mark.parametrize(
    ("name", "longest"), [("code", 128), ("message", LONGEST), ("ec2_request", 128), ("advice", LONGEST)]
)
def test_words_of_a_failure_are_cut(name: str, longest: int) -> None:
    given = {"code": "c", "message": "m", name: "a" * 2000}
    failure = CloudFailure(CloudErrorKind.INVALID, "DescribeSubnets", **given)
    assert getattr(failure, name) == "a" * longest + "... (2000 characters)"
