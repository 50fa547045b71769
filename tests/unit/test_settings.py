from __future__ import annotations

from pathlib import Path

import pytest

from ipamd.config.error import SettingsError
from ipamd.config.load import load
from ipamd.pool.model import Targets


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "config.toml"
    file.write_text(text)
    return file


def test_defaults_need_no_file(tmp_path: Path) -> None:
    loaded = load(write(tmp_path, ""), environ={})
    assert loaded.settings.api.socket == Path("/run/ipamd/ipamd.sock")
    assert {key: str(origin) for key, origin in loaded.origins.items()} == {}


def test_the_conflist_can_be_left_to_others(tmp_path: Path) -> None:
    assert load(write(tmp_path, ""), environ={}).settings.cni.conf_dir == Path("/etc/cni/net.d")
    assert load(write(tmp_path, '[cni]\nconf_dir = ""'), environ={}).settings.cni.conf_dir is None


def test_flag_beats_environment_beats_file(tmp_path: Path) -> None:
    file = write(tmp_path, "[pool]\nwarm_ips = 1\nminimum_ips = 1\nmax_pods = 1\n")
    loaded = load(
        file,
        environ={"IPAMD_POOL_WARM_IPS": "2", "IPAMD_POOL_MINIMUM_IPS": "2", "PATH": "/bin"},
        flags={"pool.warm_ips": 3},
    )
    pool = loaded.settings.pool
    assert (pool.warm_ips, pool.minimum_ips, pool.max_pods) == (3, 2, 1)
    assert {key: str(origin) for key, origin in loaded.origins.items()} == {
        "pool.warm_ips": "command line",
        "pool.minimum_ips": "environment IPAMD_POOL_MINIMUM_IPS",
        "pool.max_pods": str(file),
    }


def test_lists_and_tables_come_as_json_from_the_environment(tmp_path: Path) -> None:
    loaded = load(
        write(tmp_path, ""),
        environ={"IPAMD_EC2_SUBNETS": '["subnet-1", "subnet-2"]', "IPAMD_EC2_TAGS": '{"team": "net"}'},
    )
    assert loaded.settings.ec2.subnets == ["subnet-1", "subnet-2"]
    assert loaded.settings.ec2.tags == {"team": "net"}


def test_cooldown_is_ten_seconds_unless_configured(tmp_path: Path) -> None:
    assert load(write(tmp_path, ""), environ={}).settings.pool.reuse_cooling_after == 10.0
    pool = load(
        write(tmp_path, "[pool]\ncooldown = 30\n"), environ={"IPAMD_POOL_REUSE_COOLING_AFTER": "120.5"}
    ).settings.pool
    assert (pool.cooldown, pool.reuse_cooling_after) == (30.0, 120.5)


@pytest.mark.parametrize("name", ["", "prod", "eu-west-1.k8s.example.org", "team/blue_2", "x" * 128])
def test_a_cluster_has_a_name_fit_for_a_tag(tmp_path: Path, name: str) -> None:
    assert load(write(tmp_path, f'[ec2]\ncluster = "{name}"'), environ={}).settings.ec2.cluster == name


def test_the_pool_knows_every_setting_that_is_its_own(tmp_path: Path) -> None:
    settings = load(write(tmp_path, "[pool]\nreuse_cooling_after = 3"), environ={}).settings
    assert Targets(**settings.pool.model_dump()) == Targets(reuse_cooling_after=3.0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[pool]\nreuse_cooling_after = -1", ["pool.reuse_cooling_after", "must be at least 0"]),
        ('[ec2]\ncluster = "prod*"', ["ec2.cluster", "must match", "config.toml"]),
        ('[ec2]\ncluster = " prod"', ["ec2.cluster", "must match"]),
        ('[ec2]\ncluster = "prod\\n"', ["ec2.cluster", "must match"]),
        (f'[ec2]\ncluster = "{"x" * 129}"', ["ec2.cluster", "must match"]),
        ("[pool]\nwarm_ips = -1", ["pool.warm_ips", "must be at least 0", "config.toml"]),
        ("[pool]\nwarm_ip = 1", ["config.toml:2: pool.warm_ip", "did you mean pool.warm_ips?"]),
        ("[pole]\nwarm_ips = 1", ["pole", "did you mean [pool]?"]),
        ("pool = 3", ["pool = 3: it is a section", "[pool]"]),
        ("[pool\n", ["not TOML"]),
        ('[host]\nsnat_exclude = ["10.0.0.1/8"]', ["host.snat_exclude", "host bits set"]),
        ("[host]\nmark_mask = 0x7f", ["mark_mask", "overlap"]),
        ("[host]\nmain_mark = 0xc0", ["main_mark", "single bit"]),
        ("[host]\nrule_pods = 1100", ["host.rule_pods (1100)", "host.rule_main (1100)"]),
        ("[host]\nrule_main = 1600", ["host.rule_main (1600)", "host.rule_eni (1500)"]),
        ("[host]\nrule_from = 1515", ["host.rule_eni + 15 (1515)", "host.rule_from (1515)"]),
        ("[host]\nrule_eni = 31990", ["host.rule_eni + 15 (32005)"]),
        ("[host]\nmark_mask = 0x2d\nmain_mark = 0x100", ["mark_mask", "adjacent bits"]),
    ],
)
def test_a_bad_value_is_named_with_its_origin(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        load(write(tmp_path, text), environ={})
    for word in words:
        assert word in str(caught.value)


def test_a_bad_variable_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"environment IPAMD_POOL_WARM_IPS"):
        load(write(tmp_path, ""), environ={"IPAMD_POOL_WARM_IPS": "many"})
    with pytest.raises(SettingsError, match="IPAMD_EC2_SUBNETS = subnet-1: must be JSON"):
        load(write(tmp_path, ""), environ={"IPAMD_EC2_SUBNETS": "subnet-1"})


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no such file"):
        load(tmp_path / "absent.toml", environ={})
