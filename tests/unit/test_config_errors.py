"""A bad setting is named with its file, line, value and what is allowed, and all of them at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipamd.config.error import SettingsError
from ipamd.config.lines import line_of
from ipamd.config.load import load

BAD = """\
# a comment
[pool]
warm_ips = -1
warm_ip = 3
cooldown = "long"

[pole]
warm_ips = 1
[host]
mtu = 99999
snat_exclude = [
  "10.0.0.0/8",
  "10.0.0.1/8",
]
snat = "maybe"
[log]
level = "loud"
"""


def complaints(tmp_path: Path, text: str, **environ: str) -> list[str]:
    file = tmp_path / "c.toml"
    file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load(file, environ=environ)
    return str(caught.value).replace(str(file), "c.toml").splitlines()


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    found = complaints(tmp_path, BAD, IPAMD_POOL_WARM_IPZ="3", IPAMD_EC2_SUBNETS="subnet-1", IPAMD_POOL_SLACK="x")
    assert sorted(found) == sorted(
        [
            "c.toml:3: pool.warm_ips = -1: must be at least 0 (addresses kept free beyond what is asked for)",
            "c.toml:4: pool.warm_ip: no such setting; did you mean pool.warm_ips?",
            'c.toml:5: pool.cooldown = "long": must be a number (seconds before a released address is used again)',
            "c.toml:7: pole: no such section; did you mean [pool]?",
            "c.toml:10: host.mtu = 99999: must be at most 9216 (of ENIs, and of pods' interfaces; 0: the ENI's own)",
            'c.toml:11: host.snat_exclude.1 = "10.0.0.1/8": 10.0.0.1/8 has host bits set; the network is '
            "10.0.0.0/8 (further destinations without SNAT)",
            'c.toml:15: host.snat = "maybe": must be true or false (rewrite the source of traffic that leaves the '
            "VPC to the primary address)",
            "c.toml:17: log.level = \"loud\": must be one of 'debug', 'info', 'warning' or 'error' (least severe "
            "level written)",
            "environment IPAMD_POOL_WARM_IPZ: no such setting; did you mean IPAMD_POOL_WARM_IPS?",
            'environment IPAMD_EC2_SUBNETS = subnet-1: must be JSON, for instance \'["a", "b"]\'',
            'environment IPAMD_POOL_SLACK = "x": must be a whole number (free addresses beyond the warm ones that '
            "are not worth a call to return)",
        ]
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("pool.warm_ips = -1", "c.toml:1: pool.warm_ips = -1: must be at least 0"),
        ("\npool = { slack = 1, warm_ips = -1 }", "c.toml:2: pool.warm_ips = -1"),
        ('[pool]\n"warm_ips" = -1', "c.toml:2: pool.warm_ips"),
        ('[ec2]\ntags = """\n[pool]\nslack = 3\n"""', 'c.toml:2: ec2.tags = "[pool]\\nslack = 3\\n": must be a'),
        ("log = 3", "c.toml:1: log = 3: it is a section: write [log], and its keys below"),
        ("[pool]\n\n# here\nmtu = 3", "c.toml:4: pool.mtu: no such setting; did you mean host.mtu?"),
        ("[pool]\nzzz = 3", "c.toml:2: pool.zzz: no such setting; ipamd config reference lists them"),
        ("[zzz]\n", "c.toml:1: zzz: no such section; there are [api], [pool], "),
        ("[pool]\nwarm_ips = 1.5", "must be a whole number"),
        ("[api]\nsocket = 3", "c.toml:2: api.socket = 3: must be a path, in quotes"),
        ("[ec2]\nsubnets = 'subnet-1'", "must be a list"),
        ("[pool]\nallocate_wait = 0", "must be more than 0"),
        ("[host]\nmark_mask = 0x7f", "c.toml:2: host.mark_mask 0x7f and host.main_mark 0x40 overlap"),
        ("[host]\n\nrule_pods = 1100", "c.toml:3: host.rule_pods (1100) must be less than host.rule_main (1100)"),
        ("[pool]\nwarm_ips = 1\nwarm_ips = 2", "c.toml: not TOML: Cannot overwrite a value"),
    ],
)  # fmt: skip
def test_where_and_what(tmp_path: Path, text: str, complaint: str) -> None:
    (line,) = complaints(tmp_path, text)
    assert line.startswith(complaint) or complaint in line


def test_an_environment_variable_is_no_line_of_the_file(tmp_path: Path) -> None:
    (line,) = complaints(tmp_path, "[pool]\nwarm_ips = 1", IPAMD_POOL_WARM_IPS="-2")
    assert line.startswith('environment IPAMD_POOL_WARM_IPS = "-2": must be at least 0')


def test_a_huge_file_is_not_searched() -> None:
    assert line_of("x = 1\n" * 3000, ("x",)) == 0


KEYS = st.lists(st.sampled_from(["warm_ips", "slack", "cooldown", "max_pods"]), unique=True, min_size=1)


@given(keys=KEYS, gaps=st.lists(st.sampled_from(["", "\n", "# warm_ips = 1\n", "\n\n"]), min_size=4, max_size=4))
def test_the_line_is_that_of_the_key_whatever_stands_around_it(keys: list[str], gaps: list[str]) -> None:
    text = "[pool]\n" + "".join(f"{gap}{key} = 7\n" for key, gap in zip(keys, gaps, strict=False))
    for key in keys:
        expected = next(number for number, line in enumerate(text.splitlines(), 1) if line.startswith(f"{key} ="))
        assert line_of(text, ("pool", key)) == expected


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("warm_ips = 3", "c.toml:1: warm_ips: no such section; the key warm_ips belongs below [pool]"),
        ("endpoint = ''", "no such section; the key endpoint belongs below [ec2] or [imds] or [tracing]"),
        ("[warm_ips]\nx = 1", "c.toml:1: warm_ips: no such section; there are [api]"),
        ("[polo]\nx = 1", "did you mean [pool]?"),
    ],
)
def test_a_key_without_its_section_is_sent_home(tmp_path: Path, text: str, complaint: str) -> None:
    (found,) = complaints(tmp_path, text)
    assert complaint in found


@pytest.mark.parametrize(
    ("variable", "complaint"),
    [
        ("IPAMD_WARM_IPS", "no such setting; did you mean IPAMD_POOL_WARM_IPS?"),
        ("IPAMD_SOCKET", "no such setting; did you mean IPAMD_API_SOCKET?"),
        ("IPAMD_POLE_WARM_IPS", "no such setting; did you mean IPAMD_POOL_WARM_IPS?"),
        ("IPAMD_QQQ_ZZZ", "no such setting; ipamd config reference lists them"),
        ("IPAMD_X", "no such setting; ipamd config reference lists them"),
    ],
)
def test_a_variable_of_no_section_is_named(tmp_path: Path, variable: str, complaint: str) -> None:
    assert complaints(tmp_path, "", **{variable: "3"}) == [f"environment {variable}: {complaint}"]
