"""All settings in one typed, validated tree: the single place that names, defaults and explains each of them.

Order of precedence: command-line flag, environment (`IPAMD_<SECTION>_<KEY>`), file (/etc/ipamd/config.toml),
default. `load` keeps the origin of each value, so that `ipamd config check` can say where it came from.
"""

from __future__ import annotations

import ipaddress
import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

DEFAULT_PATH = Path("/etc/ipamd/config.toml")
ENVIRONMENT_PREFIX = "IPAMD_"

# The highest device index that an ENI has a table, a priority and a group for. No instance type has more ENIs on one
# network card.
MOST_ENIS = 15


class SettingsError(Exception):
    """The settings can't be used; the message names each bad key, what is wrong with it and where it came from."""


def _cidr(text: str) -> str:
    return str(ipaddress.IPv4Network(text))


def _empty_is_none(value: Any) -> Any:
    return None if value == "" else value


Cidr = Annotated[str, AfterValidator(_cidr)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ApiSettings(_Section):
    socket: Path = Field(Path("/run/ipamd/ipamd.sock"), description="gRPC socket (mode 0600)")
    read_group: str = Field(
        "",
        description="group that may look, and change nothing, by api.read_socket; empty: root alone, by api.socket",
    )
    read_socket: Path = Field(Path("/run/ipamd/read.sock"), description="gRPC socket for api.read_group (mode 0660)")


class PoolSettings(_Section):
    warm_ips: int = Field(5, ge=0, description="addresses kept free beyond what is asked for")
    warm_enis: int = Field(0, ge=0, description="ENIs' worth of addresses kept free instead of warm_ips; 0: warm_ips")
    minimum_ips: int = Field(0, ge=0, description="addresses the node holds at least, in use or not")
    max_pods: int = Field(0, ge=0, description="most addresses in use at once; 0: what the instance type allows")
    max_enis: int = Field(0, ge=0, description="most ENIs, the primary included; 0: what the instance type allows")
    slack: int = Field(8, ge=0, description="free addresses beyond the warm ones that are not worth a call to return")
    release_delay: float = Field(7200.0, ge=0, description="seconds an excess lasts before it goes back to EC2")
    cooldown: float = Field(30.0, ge=0, description="seconds before a released address is used again")
    reuse_cooling_after: float = Field(
        10.0,
        ge=0,
        description="seconds after which a cooling address is used again when pods wait and none is free, once its "
        "tracked connections were removed; more than cooldown: never before its end",
    )
    allocate_wait: float = Field(30.0, gt=0, description="seconds an allocation waits at most")
    coalesce: float = Field(0.05, ge=0, le=5, description="seconds in which requests gather into one EC2 call")


class Ec2Settings(_Section):
    endpoint: str = Field("", description="URL of the EC2 API; empty: the region's own")
    subnets: list[str] = Field(default_factory=list, description="subnets for new ENIs; empty: the primary ENI's")
    security_groups: list[str] = Field(
        default_factory=list, description="security groups of new ENIs; empty: the primary ENI's"
    )
    tags: dict[str, str] = Field(default_factory=dict, description="further tags for new ENIs")
    cluster: str = Field(
        "",
        # Fit for a tag's value, and without what EC2's filters take for wildcards.
        pattern=r"^([A-Za-z0-9][A-Za-z0-9_.:/@+=-]{0,127})?$",
        description="name of the cluster, a tag of new ENIs: its nodes also remove network interfaces that a "
        "terminated node of it has left behind; empty: none",
    )
    timeout: float = Field(10.0, gt=0, description="seconds for one call")


class ImdsSettings(_Section):
    endpoint: str = Field("http://169.254.169.254", description="URL of the instance metadata service")


class LedgerSettings(_Section):
    path: Path = Field(Path("/run/ipamd/ledger.db"), description="SQLite file with the records")


class CniSettings(_Section):
    spool_dir: Path = Field(
        Path("/run/ipamd/released"), description="where the plugin leaves a DEL that the daemon did not answer"
    )
    conf_dir: Annotated[Path | None, BeforeValidator(_empty_is_none)] = Field(
        Path("/etc/cni/net.d"),
        description="where the daemon writes 10-ipamd.conflist once it can serve; empty: nowhere",
    )


class HostSettings(_Section):
    """Numbers that must not clash with other software on the host. One ENI with device index i uses table,
    rule priority and link group `table + i`, `rule_eni + i` and `table + i`."""

    table: int = Field(1500, ge=256, le=2**31, description="routing table of the pods; an ENI's is this plus i")
    rule_pods: int = Field(500, ge=1, le=32765, description="priority: lookup table pods")
    rule_main: int = Field(1000, ge=1, le=32765, description="priority: main bit, lookup main")
    rule_eni: int = Field(1500, ge=1, le=32000, description="priority: ENI mark, lookup that ENI's table")
    rule_from: int = Field(32000, ge=1, le=32765, description="priority: from the ENI's own address")
    route_protocol: int = Field(158, ge=5, le=255, description="rtm_protocol of every route and rule written")
    nft_table: str = Field("ipamd", pattern=r"^[a-z][a-z0-9_-]{0,30}$", description="nftables table (inet)")
    mark_mask: int = Field(0x3F, gt=0, le=2**32 - 1, description="bits of the packet mark that hold the ENI")
    main_mark: int = Field(0x40, gt=0, le=2**32 - 1, description="bit of the packet mark for the primary ENI")
    snat: bool = Field(True, description="rewrite the source of traffic that leaves the VPC to the primary address")
    snat_exclude: list[Cidr] = Field(default_factory=list, description="further destinations without SNAT")
    pod_imds: Literal["allow", "block"] = Field(
        "allow", description="whether pods reach the instance metadata service, with the node's role"
    )
    mtu: int = Field(0, ge=0, le=9216, description="of ENIs, and of pods' interfaces; 0: the ENI's own")
    pod_mtu: int = Field(0, ge=0, le=9216, description="of pods' interfaces alone; 0: their ENI's")


class LogSettings(_Section):
    level: Literal["debug", "info", "warning", "error"] = Field("info", description="least severe level written")
    format: Literal["auto", "json", "text"] = Field("auto", description="auto: text on a terminal, else JSON")


class Settings(_Section):
    api: ApiSettings = Field(default_factory=ApiSettings)
    pool: PoolSettings = Field(default_factory=PoolSettings)
    ec2: Ec2Settings = Field(default_factory=Ec2Settings)
    imds: ImdsSettings = Field(default_factory=ImdsSettings)
    ledger: LedgerSettings = Field(default_factory=LedgerSettings)
    cni: CniSettings = Field(default_factory=CniSettings)
    host: HostSettings = Field(default_factory=HostSettings)
    log: LogSettings = Field(default_factory=LogSettings)


@dataclass(frozen=True, slots=True)
class Loaded:
    """The settings in force and, for each dotted key that is not a default, where its value came from."""

    settings: Settings
    origins: Mapping[str, str]

    def effective(self) -> Iterator[tuple[str, Any, str]]:
        """(dotted key, value as JSON knows it, origin) of every setting."""
        for section, values in self.settings.model_dump(mode="json").items():
            for key, value in values.items():
                dotted = f"{section}.{key}"
                yield dotted, value, self.origins.get(dotted, "default")


def load(
    path: Path | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> Loaded:
    """Read and validate the settings.

    `path` None means the default file, which may be absent; a named file must exist. `flags` maps dotted keys
    ("pool.warm_ips") to values. Raises `SettingsError`.
    """
    values: dict[str, dict[str, Any]] = {}
    origins: dict[str, str] = {}

    def put(section: str, key: str, value: Any, origin: str) -> None:
        values.setdefault(section, {})[key] = value
        origins[f"{section}.{key}"] = origin

    for section, keys in _read_file(path).items():
        if not isinstance(keys, dict):
            raise SettingsError(f"{path or DEFAULT_PATH}: {section!r} is not a section; write [{section}]")
        for key, value in keys.items():
            put(section, key, value, str(path or DEFAULT_PATH))
    for name, text in (os.environ if environ is None else environ).items():
        if not name.startswith(ENVIRONMENT_PREFIX):
            continue
        section, _, key = name.removeprefix(ENVIRONMENT_PREFIX).lower().partition("_")
        put(section, key, _from_text(section, key, text, name), f"environment {name}")
    for dotted, value in (flags or {}).items():
        section, _, key = dotted.partition(".")
        put(section, key, value, "command line")

    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        raise SettingsError("\n".join(_explain(error, origins))) from None
    _check_marks(settings.host)
    _check_priorities(settings.host)
    return Loaded(settings, origins)


def _read_file(path: Path | None) -> dict[str, Any]:
    try:
        with (path or DEFAULT_PATH).open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        if path is None:
            return {}
        raise SettingsError(f"{path}: no such file") from None
    except OSError as error:
        raise SettingsError(f"{path or DEFAULT_PATH}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path or DEFAULT_PATH}: not TOML: {error}") from None


def _from_text(section: str, key: str, text: str, variable: str) -> Any:
    """Environment variables hold scalars as they are; lists and tables as JSON."""
    field = Settings.model_fields.get(section)
    model = field.annotation if field else None
    if not (isinstance(model, type) and issubclass(model, BaseModel)) or key not in model.model_fields:
        return text  # unknown: validation names it
    if get_origin(model.model_fields[key].annotation) not in (list, dict):
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise SettingsError(f"{variable}: expected JSON, for instance '[\"a\"]', got {text!r}") from None


def _explain(error: ValidationError, origins: Mapping[str, str]) -> list[str]:
    lines = []
    for item in error.errors():
        dotted = ".".join(str(part) for part in item["loc"])
        origin = origins.get(".".join(str(part) for part in item["loc"][:2]), "")
        what = "unknown setting" if item["type"] == "extra_forbidden" else item["msg"]
        lines.append(f"{dotted}: {what}" + (f" (from {origin})" if origin else ""))
    return lines


def _check_marks(host: HostSettings) -> None:
    if host.mark_mask & host.main_mark:
        raise SettingsError(f"host.mark_mask {host.mark_mask:#x} and host.main_mark {host.main_mark:#x} overlap")
    if host.main_mark & (host.main_mark - 1):
        raise SettingsError(f"host.main_mark {host.main_mark:#x} must be a single bit")
    low = host.mark_mask & -host.mark_mask
    if (host.mark_mask // low) & (host.mark_mask // low + 1):
        raise SettingsError(f"host.mark_mask {host.mark_mask:#x} must be one run of adjacent bits")


def _check_priorities(host: HostSettings) -> None:
    """The rule for pods comes first, as their addresses must win over everything; then the main bit, then the ENIs'
    marks, and last what goes by the source alone."""
    last = host.rule_eni + MOST_ENIS
    order = (
        ("host.rule_pods", host.rule_pods, "host.rule_main", host.rule_main),
        ("host.rule_main", host.rule_main, "host.rule_eni", host.rule_eni),
        (f"host.rule_eni + {MOST_ENIS}", last, "host.rule_from", host.rule_from),
    )
    for first, lower, second, higher in order:
        if lower >= higher:
            raise SettingsError(
                f"{first} ({lower}) must be less than {second} ({higher}): rules are looked up in that order"
            )
