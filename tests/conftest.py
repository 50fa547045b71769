"""For all tests."""

from __future__ import annotations

import signal

from hypothesis import HealthCheck, settings

# How long an example takes says how busy the machine is, and nothing about what is tested.
settings.register_profile("ipamd", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ipamd")


def pytest_configure() -> None:
    """Who starts the tests in the background of a script has them ignore SIGINT, and all that they start with them
    (POSIX, "Shell Command Language", 2.11): they could not be shown to end by it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
