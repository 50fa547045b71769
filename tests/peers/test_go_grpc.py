"""The plugin's gRPC client against grpc-go, whose server differs from grpcio's in nearly everything that may differ:
Huffman codes, window updates, pings of its own, one stop in two GOAWAYs."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cni_shim.grpc_call import LARGEST_REPLY, CallError, Garbled, Late, Refused, Unreachable, unary
from tests.golang import build

UNAVAILABLE, UNIMPLEMENTED, DEADLINE_EXCEEDED, CANCELLED = 14, 12, 4, 1


class Server:
    """grpc-go on a socket of its own."""

    def __init__(self, path: str, *options: str) -> None:
        self.path = path
        self.process = subprocess.Popen(
            [build("go_grpc"), path, *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.expect("ready")

    def expect(self, line: str) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == line + "\n"

    def tell(self, command: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")

    def call(self, method: str, request: bytes = b"", seconds: float = 20.0) -> bytes:
        return unary(self.path, b"/test/" + method.encode(), request, time.monotonic() + seconds)

    def end(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


@contextmanager
def serving(*options: str) -> Iterator[Server]:
    directory = Path(tempfile.mkdtemp(prefix="ipm"))  # short: pytest's own may exceed what a socket's path may have
    try:
        server = Server(str(directory / "s.sock"), *options)
        try:
            yield server
        finally:
            server.end()
    finally:
        shutil.rmtree(directory)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as made:
        yield made


@contextmanager
def calling(call: Callable[[], bytes]) -> Iterator[list[bytes | CallError]]:
    """Calls in a thread of its own; the outcome is in the list after the block."""
    outcome: list[bytes | CallError] = []

    def run() -> None:
        try:
            outcome.append(call())
        except CallError as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield outcome
    finally:
        thread.join()


@pytest.mark.parametrize("size", [0, 1, 16_379, 16_384, 65_530, 300_000, LARGEST_REPLY - 5])
def test_request_of_any_size(server: Server, size: int) -> None:
    assert server.call("length", b"q" * size) == str(size).encode()


@pytest.mark.parametrize("size", [0, 1, 16_384, 300_000, LARGEST_REPLY])
def test_reply_of_any_size(server: Server, size: int) -> None:
    assert server.call("big", str(size).encode()) == b"x" * size


def test_a_reply_beyond_the_limit(server: Server) -> None:
    with pytest.raises(Garbled, match="too large"):
        server.call("big", str(LARGEST_REPLY + 1).encode())


@pytest.mark.parametrize("size", [65_536, 3_000_000])
def test_small_windows(size: int) -> None:
    with serving("-windows", "65536") as server:
        assert server.call("length", b"q" * size) == str(size).encode()
        assert server.call("echo", b"q" * size) == b"q" * size


@pytest.mark.parametrize("method", ["fail", "fail_late", "fail_after_reply"])
@pytest.mark.parametrize("message", ["", "voll: 5 % Übrig\n", "%41 %zz %", "日本 🚧", "long " * 4000])
def test_a_status_with_message_and_metadata(server: Server, method: str, message: str) -> None:
    with pytest.raises(Refused) as caught:
        server.call(method, f"8 {message}".encode())
    assert (caught.value.status, str(caught.value)) == (8, message)
    assert caught.value.metadata[b"ipamd-cni-error"] == b'{"code":11}'
    assert caught.value.metadata[b"more"] == b"a,b"
    assert caught.value.metadata[b"raw-bin"] in (b"AP8", b"AP8=")


def test_a_code_that_nobody_knows(server: Server) -> None:
    with pytest.raises(Refused) as caught:
        server.call("fail", b"99 new")
    assert caught.value.status == 99


def test_an_unknown_method(server: Server) -> None:
    with pytest.raises(Refused) as caught:
        server.call("nothing")
    assert caught.value.status == UNIMPLEMENTED


@pytest.mark.parametrize("size", [1000, 15_000, 20_000, 45_000])
def test_header_lists_in_several_frames(server: Server, size: int) -> None:
    assert server.call("metadata", str(size).encode()) == str(size).encode()


def test_a_header_list_beyond_what_the_client_takes(server: Server) -> None:
    """grpc-go keeps to MAX_HEADER_LIST_SIZE: it answers with an error instead."""
    with pytest.raises((Refused, Garbled, Unreachable)):
        server.call("metadata", b"200000", seconds=3.0)


def test_the_deadline(server: Server) -> None:
    assert 5_000 < int(server.call("deadline", seconds=10.0)) <= 10_000
    with pytest.raises((Late, Refused, Unreachable)) as caught:
        server.call("wait", seconds=0.2)
    if isinstance(caught.value, Refused):
        assert caught.value.status in (DEADLINE_EXCEEDED, CANCELLED)
    assert caught.value.sent
    server.expect("started")


def test_a_graceful_stop_lets_the_call_end() -> None:
    with serving() as server:
        with calling(lambda: server.call("wait", b"300")) as outcome:
            server.expect("started")
            server.tell("graceful")
        assert outcome == [b"300"]
        server.expect("stopped")
        with pytest.raises(Unreachable) as caught:
            server.call("echo")
        assert not caught.value.sent


def test_a_stop_drops_the_call() -> None:
    with serving() as server:
        with calling(lambda: server.call("wait")) as outcome:
            server.expect("started")
            server.tell("stop")
        (error,) = outcome
        assert isinstance(error, Unreachable | Refused) and error.sent, error
        if isinstance(error, Refused):
            assert error.status in (UNAVAILABLE, CANCELLED)


def test_keepalive_pings_are_answered() -> None:
    """A client that did not answer would lose its connection after 1.3 s."""
    with serving("-keepalive") as server:
        assert server.call("wait", b"2600") == b"2600"


def test_a_compressed_reply_is_refused() -> None:
    with serving("-compress") as server, pytest.raises(Garbled, match="not one plain message"):
        server.call("big", b"1000")


def test_many_calls_at_once(server: Server) -> None:
    failed: list[object] = []

    def call(number: int) -> None:
        request = bytes([number]) * (number * 1000)
        try:
            if server.call("echo", request) != request:
                failed.append(number)
        except CallError as error:
            failed.append(error)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
