"""How the daemon comes up soon and small: pods may be waiting for it, and it shares their node's memory."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# Where OpenSSL looks for certificates: SSL_CTX_set_default_verify_paths(3).
_CERTIFICATES = "SSL_CERT_FILE"

_M_ARENA_MAX = -8  # mallopt(3)


@contextmanager
def quick_imports() -> Iterator[None]:
    """For imports before anything else runs in the process.

    Modules stay for good, and the collector need not look for rubbish among them: not while they come (60 ms), and
    not later, when each full collection would stop the daemon for 50 ms.

    aiohttp prepares a TLS context with all the certificates of the host when it is imported (40 ms, 2 MiB). Nobody
    uses it: connections to EC2 have a context of their own, and there is none to anybody else. It gets no
    certificates, so that it would trust no one.

    gRPC's threads and those for files would each keep freed memory for themselves: one pool for all saves 2 MiB.
    """
    with suppress(AttributeError):  # glibc's alone
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
    certificates = os.environ.get(_CERTIFICATES)
    os.environ[_CERTIFICATES] = os.devnull
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        del os.environ[_CERTIFICATES]
        if certificates is not None:
            os.environ[_CERTIFICATES] = certificates


def give_back() -> None:
    """Return to the system what only the start needed, which the C library would keep (3 MiB). What is left stays for
    good, and is of no more interest to the collector. Takes some 10 ms."""
    gc.collect()
    gc.freeze()
    with suppress(AttributeError):  # malloc_trim(3)
        ctypes.CDLL(None).malloc_trim(0)
