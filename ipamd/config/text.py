"""Text as somebody's editor, shell or fleet tool left it: read with a bound, and decoded by its byte order mark.

PowerShell's `>` writes UTF-16, Windows' editors write a mark before UTF-8. A file may also be a directory, a pipe
that nobody writes to, or a disk image: none of that may hang or fill a daemon that only wants its settings.
"""

from __future__ import annotations

import codecs
import os
import stat
from pathlib import Path

# The longer mark first: that of UTF-32 begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


class Unreadable(Exception):
    """The message says what it is instead of text, without the name of the file."""


def read(path: Path, most: int) -> str:
    """The text of a file of at most `most` bytes. Raises `Unreadable`; FileNotFoundError when nothing is there."""
    try:
        # Devices and pipes are for those who name one by hand, such as /dev/stdin.
        by_hand = path.is_relative_to("/dev")
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | (0 if by_hand else os.O_NONBLOCK))
        try:
            mode = os.fstat(descriptor).st_mode
            if stat.S_ISDIR(mode):
                raise Unreadable("a directory, not a file")
            if not (by_hand or stat.S_ISREG(mode)):
                raise Unreadable("not a regular file")
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                data = file.read(most + 1)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        if path.is_symlink():
            raise Unreadable(f"a symbolic link to {path.readlink()}, which is not there") from None
        raise
    except (OSError, ValueError) as error:
        raise Unreadable(getattr(error, "strerror", None) or str(error)) from None
    if len(data) > most:
        raise Unreadable(f"more than {most >> 10} KiB")
    return decode(data)


def decode(data: bytes) -> str:
    """Raises `Unreadable`."""
    mark, encoding = next((each for each in _MARKS if data.startswith(each[0])), (b"", "utf-8"))
    try:
        text = data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        why = f"not text in {encoding.upper()} (byte {error.start + len(mark)}); save it as UTF-8"
        raise Unreadable(why) from None
    if "\0" in text:
        raise Unreadable("not text: it has zero bytes, as a binary file, or UTF-16 without a mark; save it as UTF-8")
    return text
