"""Configuration as systemd reads it: which of several files counts, and what the sections of one say.

systemd.unit(5), networkd.conf(5), systemd.network(5): a file in /etc hides one of the same name in /run, and that one
the distribution's; an empty file or a link to /dev/null hides without replacement. What is left is read in the order
of its names, and later assignments win.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from pathlib import Path

FOLDERS = ("etc", "run", "usr/local/lib", "usr/lib", "lib")

Sections = dict[str, list[tuple[str, str]]]  # section -> its assignments in order


def files(root: Path, below: str, pattern: str) -> list[Path]:
    """Those that count, in the order in which they are read. `below` as "systemd/network"."""
    by_name: dict[str, Path] = {}
    for folder in FOLDERS:
        for path in _listed(root / folder / below):
            if fnmatch.fnmatchcase(path.name, pattern):
                by_name.setdefault(path.name, path)
    return [by_name[name] for name in sorted(by_name)]


def first(root: Path, name: str) -> Path | None:
    """The main file: the first that is there."""
    return next((path for folder in FOLDERS if (path := root / folder / name).is_file()), None)


def parse(paths: list[Path]) -> Sections:
    """All together, as one file."""
    sections: Sections = {}
    for path in paths:
        section = ""
        for line in _text(path).replace("\\\n", " ").splitlines():
            line = line.strip()
            if not line or line[0] in "#;":
                continue
            if line[0] == "[" and line[-1] == "]":
                section = line[1:-1]
                sections.setdefault(section, [])
            elif "=" in line:
                key, _, value = line.partition("=")
                sections.setdefault(section, []).append((key.strip(), value.strip()))
    return sections


def last(sections: Sections, section: str, key: str, default: str = "") -> str:
    """The assignment in force."""
    return next((value for name, value in reversed(sections.get(section, [])) if name == key), default)


def with_drop_ins(root: Path, path: Path, below: str) -> Sections:
    """A .network or .link file and what its drop-ins (NAME.network.d/*.conf) add."""
    return parse([path, *files(root, f"{below}/{path.name}.d", "*.conf")])


def truthy(value: str) -> bool:
    return value.lower() in ("1", "yes", "y", "true", "t", "on")


def _listed(folder: Path) -> Iterator[Path]:
    try:
        yield from folder.iterdir()
    except OSError:
        return


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
