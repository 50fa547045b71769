"""CNI error objects, written without a JSON library (importing `json` would double the plugin's own cost)."""

# Codes of the CNI specification, section "Error"; from 100 on they are the plugin's own.
INVALID_ENVIRONMENT = 4
IO_FAILURE = 5
UNDECODABLE = 6
INVALID_CONFIG = 7
UNKNOWN_CONTAINER = 3
TRY_AGAIN_LATER = 11
NOT_AVAILABLE = 50
KERNEL_REFUSED = 100
DAEMON_MISBEHAVED = 101
INTERNAL = 102

DEFAULT_VERSION = "1.0.0"
LONGEST = 1024  # characters of a message


class CniError(Exception):
    """A failure to report to the runtime: `message` is one line, `details` has cause and remedy."""

    def __init__(self, code: int, message: str, details: str = "") -> None:
        Exception.__init__(self, message)
        self.code = code
        self.message = message
        self.details = details

    def render(self, version: str) -> bytes:
        """The error object that goes to standard output: JSON, ASCII."""
        text = '{"cniVersion":%s,"code":%d,"msg":%s' % (quote(version), self.code, quote(cut(self.message)))
        if self.details:
            text += ',"details":' + quote(cut(self.details))
        return (text + "}\n").encode("ascii")


class FinishedError(CniError):
    """An error object that the daemon wrote already; printed as it came."""

    def __init__(self, text: bytes) -> None:
        CniError.__init__(self, TRY_AGAIN_LATER, "refused by the daemon")
        self.text = text

    def render(self, version: str) -> bytes:
        return self.text + b"\n"


def cut(text: str) -> str:
    """A variable of the runtime's may have 128 KiB, and a part of it is in a message."""
    return text if len(text) <= LONGEST else "%s... (%d characters)" % (text[:LONGEST], len(text))


def quote(text: str) -> str:
    """`text` as a JSON string in ASCII."""
    out = '"'
    for character in text:
        number = ord(character)
        if character in '"\\':
            out += "\\" + character
        elif 0x20 <= number < 0x7F:
            out += character
        elif number < 0x10000:
            out += "\\u%04x" % number
        else:
            number -= 0x10000
            out += "\\u%04x\\u%04x" % (0xD800 | number >> 10, 0xDC00 | number & 0x3FF)
    return out + '"'


def version_of(config: bytes) -> str:
    """The value of "cniVersion" in a network configuration, found without parsing it; else a default.

    Only used to label local errors and the answer to VERSION; the daemon reads the configuration properly.
    """
    start = config.find(b'"cniVersion"')
    if start < 0:
        return DEFAULT_VERSION
    parts = config[start + 12 : start + 64].split(b'"', 2)
    if len(parts) < 3 or parts[0].strip() != b":":
        return DEFAULT_VERSION
    digits = parts[1].replace(b".", b"")
    return parts[1].decode("ascii") if digits.isdigit() else DEFAULT_VERSION
