"""The installed plugin with a clock at its seams: where the time of one ADD goes.

    <interpreter> -IS timed_plugin.py MODULES

Runs the plugin's own compiled modules as the launcher does, with some of their functions replaced by ones that read
the clock when they end. Then it writes to standard error, in order, the name of each part and the time of
CLOCK_MONOTONIC at its end, in nanoseconds. Its caller has the times of exec and exit, so the parts add up to
the whole; the clock itself costs well under 0.1 ms.
"""

from time import monotonic_ns

MARKS = [("interpreter", monotonic_ns())]

import posix  # noqa: E402
import sys  # noqa: E402


def mark(name: str) -> None:
    MARKS.append((name, monotonic_ns()))


def closing(name, function):  # type: ignore[no-untyped-def] # `typing` may not be imported
    """The function, which ends the part of that name; what came before it belongs to the part before."""

    def timed(*arguments, **named):  # type: ignore[no-untyped-def]
        try:
            return function(*arguments, **named)
        finally:
            mark(name)

    return timed


def leave(status: int) -> None:
    mark("print")
    posix.write(2, "\n".join([f"{name}={time}" for name, time in MARKS]).encode())
    posix.__dict__["_exit_for_real"](status)


sys.path[:2] = sys.argv[1:]
posix.__dict__["_exit_for_real"] = posix._exit
posix._exit = leave  # type: ignore[assignment]
import ipamd_cni_modules  # type: ignore[import-not-found] # noqa: E402, F401

from cni_shim import daemon, main, turn  # noqa: E402

mark("imports")
import_the_rest = main._import_the_rest


def import_and_time_the_rest() -> None:
    import_the_rest()
    from cni_shim import plumbing

    plumbing._create_pair = closing("create the pair (kernel)", plumbing._create_pair)
    plumbing.namespace.enter = closing("host route, enter the namespace", plumbing.namespace.enter)
    plumbing.attach = closing("address and routes in it (kernel)", plumbing.attach)
    mark("more imports, while the daemon works")


main._import_the_rest = import_and_time_the_rest
main._read_config = closing("read the configuration", main._read_config)
daemon.unary = closing("wait for the daemon", daemon.unary)
turn.Turn.take = closing("check the namespace, take the turn", turn.Turn.take)  # type: ignore[method-assign]
main.protobuf.Plan = closing("read the plan", main.protobuf.Plan)  # type: ignore[misc]
main.main()
