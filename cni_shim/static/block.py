"""The settings inside the static executable: the marked block that `ipamd install` fills in.

`struct settings` in main.c has the same layout. Between magic and settings stand the layout's number and the digest
of the modules' sources, so that an executable of another version is recognised before it is installed.
"""

import hashlib
import sys
from pathlib import Path
from struct import Struct
from typing import NamedTuple

MAGIC = b"\x7fipamd-settings\x00"
LAYOUT = 1
LONGEST_SOCKET_PATH = 107  # sockaddr_un.sun_path less its final zero, unix(7)
LONGEST_PATH = 4095  # PATH_MAX less the final zero
# Magic, layout, digest of the sources; socket, spool folder, log (strings end with a zero), 0 or 1 for a DaemonSet,
# seconds for ADD.
BLOCK = Struct(f"=16sQ32s{LONGEST_SOCKET_PATH + 1}s{LONGEST_PATH + 1}s{LONGEST_PATH + 1}sId")


class BlockError(Exception):
    """This is no executable whose settings could be read or written; the message says why."""


class Settings(NamedTuple):
    """What `ipamd install` fixes for a node, as in cni_shim/installed.py."""

    socket: str
    spool_dir: str
    log: str
    add_seconds: float
    daemon_set: bool = False


def find(image: bytes) -> int:
    """Where in the executable the block begins. Raises BlockError."""
    start = image.find(MAGIC)
    if start < 0 or image.find(MAGIC, start + 1) >= 0 or start + BLOCK.size > len(image):
        raise BlockError("it is no static executable of this plugin")
    layout = int.from_bytes(image[start + 16 : start + 24], sys.byteorder)
    if layout != LAYOUT:
        raise BlockError(f"its settings have layout {layout}, not {LAYOUT}: it was built from another version")
    return start


def read(image: bytes) -> tuple[Settings, str]:
    """The settings of an executable, and the digest of the sources that it was built from. Raises BlockError."""
    _, _, digest, socket, spool_dir, log, daemon_set, add_seconds = BLOCK.unpack_from(image, find(image))
    settings = Settings(_text(socket), _text(spool_dir), _text(log), add_seconds, bool(daemon_set))
    return settings, digest.decode("ascii", "replace")


def fill(image: bytes, settings: Settings) -> bytes:
    """The executable with other settings. Raises BlockError."""
    start = find(image)
    _, digest = read(image)
    paths = [path.encode("utf-8", "surrogateescape") for path in settings[:3]]
    for path, longest in zip(paths, (LONGEST_SOCKET_PATH, LONGEST_PATH, LONGEST_PATH), strict=True):
        if len(path) > longest:
            raise BlockError(f"a path of {len(path)} bytes does not fit into its {longest}")
    block = BLOCK.pack(MAGIC, LAYOUT, digest.encode(), *paths, settings.daemon_set, settings.add_seconds)
    return image[:start] + block + image[start + BLOCK.size :]


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def sources() -> dict[str, str]:
    """The plugin's modules that are the same on all nodes: name -> source."""
    package = Path(__file__).parent.parent
    return {file.stem: file.read_text() for file in sorted(package.glob("*.py")) if file.stem != "installed"}


def digest(modules: dict[str, str]) -> str:
    """32 hexadecimal digits that stand for these sources."""
    return hashlib.sha256(repr(sorted(modules.items())).encode()).hexdigest()[:32]
