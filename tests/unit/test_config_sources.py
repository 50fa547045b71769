"""What is read as settings, and what only looks like some: encodings, odd files, variables of Kubernetes."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ipamd.__main__ import main
from ipamd.config.error import SettingsError
from ipamd.config.load import load
from ipamd.config.service_links import is_service_link
from ipamd.config.text import Unreadable, decode, read

TOML = '[pool]\nwarm_ips = 3\n[ec2.tags]\nteam = "Zürich"\n'


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (b"", "utf-8"),
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
        (codecs.BOM_UTF32_BE, "utf-32-be"),
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_settings_file_is_decoded_by_its_mark(tmp_path: Path, mark: bytes, encoding: str, newline: str) -> None:
    file = tmp_path / "c.toml"
    file.write_bytes(mark + TOML.replace("\n", newline).encode(encoding))
    settings = load(file, environ={}).settings
    assert (settings.pool.warm_ips, settings.ec2.tags) == (3, {"team": "Zürich"})


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "latin-1"])
def test_text_without_a_mark_is_named_for_what_it_is(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "c.toml"
    file.write_bytes(TOML.encode(encoding))
    with pytest.raises(SettingsError, match="save it as UTF-8"):
        load(file, environ={})


@given(st.binary(max_size=64))
@example(codecs.BOM_UTF16_LE + b"x")
@example(codecs.BOM_UTF32_LE + b"\xff\xff\xff\xff")
def test_any_bytes_are_text_or_one_sentence(data: bytes) -> None:
    try:
        assert "\0" not in decode(data)
    except Unreadable as why:
        assert str(why) and "\n" not in str(why)


def test_an_odd_file_leaves_no_descriptor(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"x" * 100)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for path in (tmp_path, tmp_path / "large"):
        with pytest.raises(Unreadable):
            read(path, 99)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


# Variables of services

IPV4 = {
    "IPAMD_SERVICE_HOST": "10.100.7.1",
    "IPAMD_SERVICE_PORT": "61678",
    "IPAMD_SERVICE_PORT_METRICS_HTTP": "61678",
    "IPAMD_PORT": "tcp://10.100.7.1:61678",
    "IPAMD_PORT_61678_TCP": "tcp://10.100.7.1:61678",
    "IPAMD_PORT_61678_TCP_PROTO": "tcp",
    "IPAMD_PORT_61678_TCP_PORT": "61678",
    "IPAMD_PORT_61678_TCP_ADDR": "10.100.7.1",
    "IPAMD_PORT_53_UDP": "udp://10.100.7.1:53",
    "IPAMD_PORT_53_UDP_PROTO": "udp",
}


def links(service: str, host: str) -> dict[str, str]:
    return {name.replace("IPAMD", service, 1): value.replace("10.100.7.1", host) for name, value in IPV4.items()}


@pytest.mark.parametrize("service", ["IPAMD", "IPAMD_METRICS", "IPAMD_API", "IPAMD_POOL_WARM_IPS", "IPAMD_X_2"])
@pytest.mark.parametrize("host", ["10.100.7.1", "fd00::7", "[fd00::7]"])
def test_links_to_a_service_are_no_settings(tmp_path: Path, service: str, host: str) -> None:
    found = load(_empty(tmp_path), environ={**links(service, host), "IPAMD_POOL_WARM_IPS": "4"})
    assert found.settings.pool.warm_ips == 4
    assert set(found.service_links) == set(links(service, host))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("IPAMD_SERVICE_HOST", "prod"),
        ("IPAMD_SERVICE_PORT", "http"),
        ("IPAMD_SERVICE_PORT", "0"),
        ("IPAMD_SERVICE_PORT", "99999999999999999999"),
        ("IPAMD_METRICS_PORT", "9100"),
        ("IPAMD_PORT", "tcp://10.0.0.1"),
        ("IPAMD_PORT", "http://10.0.0.1:80"),
        ("IPAMD_PORT_80_TCP_PROTO", "quic"),
        ("IPAMD_POOL_WARM_IP", "3"),
    ],
)
def test_a_variable_without_the_form_of_a_link_is_a_mistake(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=name):
        load(_empty(tmp_path), environ={name: value})


def test_check_names_the_links_that_it_ignores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in IPV4.items():
        monkeypatch.setenv(name, value)
    assert main(["config", "check", "--config", str(_empty(tmp_path))]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "Kubernetes" in line]
    assert "IPAMD_SERVICE_HOST" in line and "enableServiceLinks: false" in line


def test_no_setting_of_ours_has_the_name_of_a_link(tmp_path: Path) -> None:
    keys = [key for key, _, _ in load(_empty(tmp_path), environ={}).effective()]
    values = ("10.0.0.1", "80", "tcp://10.0.0.1:80", "tcp")
    names = ["IPAMD_" + key.replace(".", "_").upper() for key in keys]
    assert not [name for name in names for value in values if is_service_link(name, value)]


def _empty(tmp_path: Path) -> Path:
    file = tmp_path / "c.toml"
    file.write_text("")
    return file
