"""What can't work is refused when the settings are read, or brought into form; and what passes can start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ipamd.api.place import SocketUnusable, claim
from ipamd.config.error import SettingsError
from ipamd.config.load import Loaded, load
from ipamd.config.reference import toml_value
from ipamd.settings import Settings


def loaded(tmp_path: Path, key: str, value: Any) -> Loaded:
    section, _, name = key.partition(".")
    file = tmp_path / "c.toml"
    file.write_text(f"[{section}]\n{name} = {value if isinstance(value, float) else toml_value(value)}\n")
    return load(file, environ={})


LONG = "/" + "x" * 200
PATHS = ["run/x", "./x", "", ".", "/", "@abstract", "tcp:///run/x", "http://run/x", "/run/\u001b[31m", "~/x"]
URLS = ["169.254.169.254", "host:80", "ftp://host", "http://", "http:///path", "http://:80", "http://host:0", "//h",
        "http://host:99999", "http://host:x", "http://ho st", "http://user@host", "http://host?x=1", "http://[fe80",
        "http://host#x", "https:/host", "http://10.0.0.999", " http://host", "unix:///run/x"]  # fmt: skip
DURATIONS = ["pool.release_delay", "pool.cooldown", "pool.reuse_cooling_after", "pool.allocate_wait", "ec2.timeout",
             "pool.coalesce"]  # fmt: skip
COUNTS = ["pool.warm_ips", "pool.warm_enis", "pool.minimum_ips", "pool.max_pods", "pool.max_enis", "pool.slack"]

REFUSED: list[tuple[str, Any]] = [
    *((key, path) for key in ("ledger.path", "cni.spool_dir", "host.sysctl_dir") for path in PATHS),
    *((key, path) for key in ("api.socket", "api.read_socket") for path in [*PATHS, LONG, f"unix://{LONG}", "unix:"]),
    *(("cni.conf_dir", path) for path in PATHS if path),
    *((key, url) for key in ("ec2.endpoint", "imds.endpoint", "tracing.endpoint") for url in URLS),
    ("imds.endpoint", ""),
    *((key, path) for key in ("ledger.path", "api.socket", "api.read_socket", "cni.spool_dir", "cni.conf_dir")
      for path in ("/dev/null", "/proc/x", "/sys/fs/x", "/run/../dev/x")),
    *(("metrics.listen", text) for text in (
        "tcp://127.0.0.1:61678", "http://0.0.0.0:1", "127.0.0.1", "127.0.0.1:", ":61678", "61678", "127.0.0.1:0",
        "127.0.0.1:65536", "127.0.0.1:\u0666\u0661", "::1:61678", "127.0.0.1:-1", "127.0.0.1:1e3", "host name:1",
        "300.0.0.1:61678", "[127.0.0.1]:61678", "unix:///run/m:1", "127.0.0.1:61678/metrics", "ipamd.example:61678",
    )),
    *((key, number) for key in DURATIONS for number in (float("nan"), float("inf"), float("-inf"), -1.0, 1e12)),
    *((key, number) for key in COUNTS for number in (-1, 10**6, 2**33, 10**30)),
    *(("ec2.subnets", [text]) for text in ("", "eni-1", "subnet", "subnet-", "sg-1", "subnet-1,subnet-2")),
    *(("ec2.security_groups", [text]) for text in ("", "default", "subnet-1", "sg-", "sg-1 ")),
    ("ec2.security_groups", [f"sg-{n}" for n in range(17)]),
    *(("ec2.tags", tags) for tags in (
        {"aws:x": "1"}, {"AWS:x": "1"}, {"": "1"}, {"x" * 129: "1"}, {"x": "y" * 257}, {"x": "a\nb"},
        {"ipamd.io/instance": "i-1"}, {f"k{n}": "" for n in range(46)},
    )),
    *(("api.read_group", name) for name in ("a b", "a\0b", "ipamd,wheel", "a\n")),
    ("host.mtu", 1), ("host.mtu", 575), ("host.pod_mtu", 68), ("host.mtu", 9217),
    ("host.mark_mask", 0), ("host.main_mark", 2**32), ("host.table", 255), ("host.table", 2**32),
    *(("host.nft_table", name) for name in ("my table", "table", "ct", "-x")),
    ("host.snat_exclude", ["10.0.0.0/33"]), ("log.level", "loud"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value"), REFUSED, ids=lambda value: str(value)[:40].encode("unicode_escape").decode()
)
def test_what_can_not_work_is_refused(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(SettingsError) as caught:
        loaded(tmp_path, key, value)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{tmp_path / 'c.toml'}:2: {key}") and line.isprintable()


@pytest.mark.parametrize(
    ("key", "value", "used"),
    [
        ("api.socket", "unix:///run/x.sock", "/run/x.sock"),
        ("api.socket", "unix:/run/x.sock", "/run/x.sock"),
        ("api.read_socket", "/run/" + "x" * 102, "/run/" + "x" * 102),
        ("cni.conf_dir", "", None),
        ("metrics.listen", "", ""),
        ("metrics.listen", "[::1]:61678", "[::1]:61678"),
        ("metrics.listen", "localhost:61678", "127.0.0.1:61678"),
        ("metrics.listen", "0.0.0.0:1", "0.0.0.0:1"),
        ("ec2.endpoint", "https://ec2.eu-west-1.amazonaws.com", "https://ec2.eu-west-1.amazonaws.com"),
        ("ec2.endpoint", "http://[fd00::1]:4566/path", "http://[fd00::1]:4566/path"),
        ("imds.endpoint", "http://[fd00:ec2::254]", "http://[fd00:ec2::254]"),
        *(("imds.endpoint", f"http://10.0.0.1{path}", "http://10.0.0.1") for path in (
            "/latest", "/latest/", "//latest/meta-data/", "/latest/api/token", "/2021-07-15", "/1.0/meta-data")),
        ("imds.endpoint", "http://10.0.0.1/imds/latest", "http://10.0.0.1/imds"),
        ("imds.endpoint", "http://10.0.0.1/latest-imds", "http://10.0.0.1/latest-imds"),
        *(("tracing.endpoint", f"http://otel-collector.svc:4318{path}", "http://otel-collector.svc:4318")
          for path in ("", "/", "/v1/traces", "/v1/traces/")),
        ("ledger.path", "/dev/shm/ipamd/ledger.db", "/dev/shm/ipamd/ledger.db"),
        ("ec2.subnets", ["subnet-0a", "subnet-01234567", "subnet-0a"], ["subnet-0a", "subnet-01234567"]),
        ("ec2.tags", {"Name": "", "team/x": "Zürich + 1 = 2", "k" * 128: "v" * 256}, None),
        ("ec2.tags", {f"k{n}": "" for n in range(45)}, None),
        ("host.mtu", 0, 0),
        ("host.mtu", 1500, 1500),
        ("pool.release_delay", 1e9, 1e9),
    ],
)  # fmt: skip
def test_what_is_meant_is_used(tmp_path: Path, key: str, value: Any, used: Any) -> None:
    values = {dotted: value for dotted, value, _ in loaded(tmp_path, key, value).effective()}
    assert values[key] == (value if used is None and key == "ec2.tags" else used)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[api]\nread_socket = "/run/ipamd/ipamd.sock"', "api.socket and api.read_socket are both"),
        ('[ledger]\npath = "/run/ipamd/./read/ipamd.sock"', "are both"),
        ('[ledger]\npath = "/a/x"\n[api]\nsocket = "/a/x.owed"', "are both /a/x.owed"),
        ('[cni]\nspool_dir = "/etc/cni/net.d/"', "cni.spool_dir and cni.conf_dir are both"),
        ('[cni]\nspool_dir = "/run/ipamd"', "cni.spool_dir /run/ipamd must hold nothing but DELs, and api.socket"),
        ('[cni]\nspool_dir = "/etc"', "must hold nothing but DELs, and cni.conf_dir /etc/cni/net.d"),
        ('[cni]\nspool_dir = "/run/ipamd/ledger.db/x"', "ledger.path /run/ipamd/ledger.db is a file"),
        ('[api]\nsocket = "/run/ipamd"', "api.socket /run/ipamd is a file"),
    ],
)  # fmt: skip
def test_two_things_in_one_place_are_refused(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "c.toml"
    file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load(file, environ={})
    assert words in str(caught.value) and "c.toml:" in str(caught.value)


def test_the_longest_socket_can_be_claimed(tmp_path: Path) -> None:
    """The one bound is the other's."""
    path = tmp_path / ("x" * (106 - len(str(tmp_path))))
    if len(str(path)) != 107:
        pytest.skip("the folder's name is too long")
    claim(loaded(tmp_path, "api.socket", str(path)).settings.api)
    with pytest.raises(SettingsError, match="at most 107 bytes"):
        loaded(tmp_path, "api.socket", str(path) + "x")


@pytest.mark.parametrize("section", Settings.model_fields)
def test_an_empty_variable_is_none_unless_it_says_something(tmp_path: Path, section: str) -> None:
    model: Any = Settings.model_fields[section].annotation
    environ = {f"IPAMD_{section}_{key}".upper(): "" for key in model.model_fields}
    file = tmp_path / "c.toml"
    file.write_text("")
    settings = load(file, environ=environ).settings
    empty = {
        key for key, value in getattr(settings, section).model_dump(mode="json").items() if not value and value != 0
    }
    assert empty <= {"read_group", "endpoint", "cluster", "conf_dir", "listen", "subnets", "security_groups", "tags",
                     "snat_exclude"}  # fmt: skip
    assert json.dumps(settings.model_dump(mode="json"))


@pytest.mark.parametrize("target", ["nowhere", "s"])
def test_a_link_that_leads_nowhere_is_no_socket(tmp_path: Path, target: str) -> None:
    path = tmp_path / "s"
    path.symlink_to(tmp_path / target)
    with pytest.raises(SocketUnusable, match="is no socket: remove it"):
        claim(loaded(tmp_path, "api.socket", str(path)).settings.api)
