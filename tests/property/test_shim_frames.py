"""Frames in any lawful order always bring the reply; one unlawful frame among them always an error.

Lawful after RFC 9113: what may stand between the frames of an answer, and how an answer may be cut and padded.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cni_shim import hpack
from cni_shim.grpc_call import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    WITH_PRIORITY,
    CallError,
)
from tests.fuzz.targets import call


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def setting(number: int, value: int) -> bytes:
    return number.to_bytes(2, "big") + value.to_bytes(4, "big")


def four(number: int) -> bytes:
    return number.to_bytes(4, "big")


some_settings = st.lists(
    st.one_of(
        st.builds(setting, st.just(4), st.integers(0, 1 << 20)),  # INITIAL_WINDOW_SIZE
        st.builds(setting, st.just(3), st.integers(0, 100)),  # MAX_CONCURRENT_STREAMS
        st.builds(setting, st.integers(100, 65535), st.integers(0, 2**32 - 1)),  # of later versions
    ),
    max_size=4,
).map(b"".join)
noise = st.one_of(
    st.builds(frame, st.just(PING), st.sampled_from([0, ACK]), st.just(0), st.binary(min_size=8, max_size=8)),
    st.builds(frame, st.just(PRIORITY), st.just(0), st.sampled_from([1, 3]), st.binary(min_size=5, max_size=5)),
    st.builds(frame, st.just(WINDOW_UPDATE), st.just(0), st.sampled_from([0, 1]), st.integers(1, 65535).map(four)),
    st.builds(frame, st.just(SETTINGS), st.just(0), st.just(0), some_settings),
    st.just(frame(SETTINGS, ACK, 0, b"")),
    st.just(frame(GOAWAY, 0, 0, four(1) + four(0) + b"bye")),
    st.builds(frame, st.integers(10, 255), st.integers(0, 255), st.sampled_from([0, 1, 3]), st.binary(max_size=20)),
)


@st.composite
def block(draw: st.DrawFn, fields: bytes, flags: int) -> list[bytes]:
    """A header block in one frame or several, which nothing may part."""
    extra = draw(st.lists(st.tuples(st.sampled_from([b"x-a", b"x-b"]), st.binary(max_size=30)), max_size=3))
    fields += b"".join(hpack.literal(*field) for field in extra)
    cuts = sorted(draw(st.lists(st.integers(0, len(fields)), max_size=3)))
    pieces = [fields[start:end] for start, end in zip([0, *cuts], [*cuts, len(fields)], strict=True)]
    first = pieces[0]
    if draw(st.booleans()):
        flags |= WITH_PRIORITY
        first = bytes(5) + first
    if draw(st.booleans()):
        padding = draw(st.integers(0, 255))
        flags |= PADDED
        first = bytes((padding,)) + first + bytes(padding)
    made = [frame(HEADERS, flags | (END_HEADERS if len(pieces) == 1 else 0), 1, first)]
    for number, piece in enumerate(pieces[1:], 2):
        made.append(frame(CONTINUATION, END_HEADERS if number == len(pieces) else 0, 1, piece))
    return made


@st.composite
def answers(draw: st.DrawFn) -> tuple[list[bytes], bytes]:
    """Frames, and the reply that they bring."""
    reply = draw(st.binary(max_size=200))
    made = [frame(SETTINGS, 0, 0, draw(some_settings))]

    def between() -> None:
        made.extend(draw(st.lists(noise, max_size=3)))

    between()
    for _ in range(draw(st.integers(0, 2))):
        made.extend(draw(block(hpack.literal_indexed(8, b"103"), 0)))  # early hints
        between()
    made.extend(draw(block(b"\x88", 0)))
    data = b"\0" + four(len(reply)) + reply
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=6)))
    for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        between()
        padding = draw(st.none() | st.integers(0, 255))
        piece = data[start:end]
        made.append(
            frame(DATA, 0, 1, piece)
            if padding is None
            else frame(DATA, PADDED, 1, bytes((padding,)) + piece + bytes(padding))
        )
    between()
    made.extend(draw(block(hpack.literal(b"grpc-status", b"0"), END_STREAM)))
    return made, reply


@settings(deadline=None)
@given(answers(), st.lists(noise, max_size=3))
def test_any_lawful_order_brings_the_reply(answer: tuple[list[bytes], bytes], after: list[bytes]) -> None:
    frames, reply = answer
    assert call(b"".join(frames + after)) == reply


UNLAWFUL = {
    "data of the connection": frame(DATA, 0, 0, b""),
    "data of another stream": frame(DATA, 0, 3, b"x"),
    "headers of another stream": frame(HEADERS, END_HEADERS, 3, b"\x88"),
    "a reset of the connection": frame(RST_STREAM, 0, 0, four(0)),
    "a short reset": frame(RST_STREAM, 0, 1, b"\0"),
    "a reset": frame(RST_STREAM, 0, 1, four(8)),
    "a short ping": frame(PING, 0, 0, b"1234567"),
    "a ping of a stream": frame(PING, 0, 1, b"12345678"),
    "settings of a stream": frame(SETTINGS, 0, 1, b""),
    "half a setting": frame(SETTINGS, 0, 0, b"\0\4\0"),
    "an acknowledgement of something": frame(SETTINGS, ACK, 0, setting(4, 1)),
    "too large a window to begin with": frame(SETTINGS, 0, 0, setting(4, 1 << 31)),
    "a window update of nothing": frame(WINDOW_UPDATE, 0, 1, four(0)),
    "a window that overflows": frame(WINDOW_UPDATE, 0, 0, four(0x7FFFFFFF)),
    "a goodbye of a stream": frame(GOAWAY, 0, 1, four(1) + four(0)),
    "a short goodbye": frame(GOAWAY, 0, 0, four(1)),
    "a goodbye to our stream": frame(GOAWAY, 0, 0, four(0) + four(0)),
    "a promise": frame(PUSH_PROMISE, END_HEADERS, 1, four(2) + b"\x88"),
    "more padding than room": frame(DATA, PADDED, 1, b"\5abc"),
    "a block that goes on for ever": frame(HEADERS, 0, 1, b""),
    "headers that are none": frame(HEADERS, END_HEADERS, 1, b"\xff"),
    "a short priority": frame(PRIORITY, 0, 1, b"1234"),
    "a frame too large": (16385).to_bytes(3, "big") + bytes((DATA, 0)) + four(1) + bytes(16385),
}


@pytest.mark.parametrize("what", UNLAWFUL)
@settings(deadline=None, max_examples=25)
@given(answer=answers(), data=st.data())
def test_one_unlawful_frame_is_an_error(what: str, answer: tuple[list[bytes], bytes], data: st.DataObject) -> None:
    frames, _ = answer
    at = data.draw(st.integers(0, len(frames) - 1))
    with pytest.raises(CallError):
        call(b"".join([*frames[:at], UNLAWFUL[what], *frames[at:]]))
