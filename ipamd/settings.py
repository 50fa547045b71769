"""All settings in one typed, validated tree: the single place that names, defaults and explains each of them. The
docstring of a section is what the reference says of it. `ipamd.config` reads them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from ipamd.config import forms
from ipamd.neighbours.chain import DEFAULT

DEFAULT_PATH = Path("/etc/ipamd/config.toml")
ENVIRONMENT_PREFIX = "IPAMD_"

# The highest device index that an ENI has a table, a priority and a group for. No instance type has more ENIs on one
# network card.
MOST_ENIS = 15


# Durations are added to times since the epoch, which have to stay dates; counts go through 32 bits.
LONGEST = 1_000_000_000
MOST = 100_000


def _empty_is_none(value: Any) -> Any:
    return None if value == "" else value


def _chain() -> list[str | dict[str, Any]]:
    return [*DEFAULT]


Cidr = Annotated[str, AfterValidator(forms.cidr)]
AbsolutePath = Annotated[Path, AfterValidator(forms.absolute)]
StoragePath = Annotated[Path, AfterValidator(forms.storage)]
SocketPath = Annotated[Path, BeforeValidator(forms.plain_path), AfterValidator(forms.socket)]
Endpoint = Annotated[str, AfterValidator(forms.endpoint)]
Metadata = Annotated[str, AfterValidator(forms.metadata)]
Collector = Annotated[str, AfterValidator(forms.collector)]
Subnet = Annotated[str, AfterValidator(forms.subnet)]
SecurityGroup = Annotated[str, AfterValidator(forms.security_group)]
Mtu = Annotated[int, AfterValidator(forms.mtu)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ApiSettings(_Section):
    """Where the daemon listens."""

    socket: SocketPath = Field(Path("/run/ipamd/ipamd.sock"), description="gRPC socket (mode 0600)")
    read_group: Annotated[str, AfterValidator(forms.group)] = Field(
        "",
        description="group that may look, and change nothing, by api.read_socket: `ipamd`, which "
        "`ipamd install --systemd` prepares, or another one with the drop-in readers.conf (docs/systemd.md); empty: "
        "root alone, by api.socket",
    )
    read_socket: SocketPath = Field(
        Path("/run/ipamd/read/ipamd.sock"),
        description="gRPC socket for api.read_group (mode 0660); its folder gives it the group under systemd",
    )


class PoolSettings(_Section):
    """How many addresses are kept, and for how long. Takes effect as soon as the file is written."""

    warm_ips: int = Field(5, ge=0, le=MOST, description="addresses kept free beyond what is asked for")
    warm_enis: int = Field(
        0, ge=0, le=MOST, description="ENIs' worth of addresses kept free instead of warm_ips; 0: warm_ips"
    )
    minimum_ips: int = Field(0, ge=0, le=MOST, description="addresses the node holds at least, in use or not")
    max_pods: int = Field(
        0, ge=0, le=MOST, description="most addresses in use at once; 0: what the instance type allows"
    )
    max_enis: int = Field(
        0, ge=0, le=MOST, description="most ENIs, the primary included; 0: what the instance type allows"
    )
    slack: int = Field(
        8, ge=0, le=MOST, description="free addresses beyond the warm ones that are not worth a call to return"
    )
    release_delay: float = Field(
        7200.0, ge=0, le=LONGEST, description="seconds an excess lasts before it goes back to EC2"
    )
    cooldown: float = Field(30.0, ge=0, le=LONGEST, description="seconds before a released address is used again")
    reuse_cooling_after: float = Field(
        10.0,
        ge=0,
        le=LONGEST,
        description="seconds after which a cooling address is used again when pods wait and none is free, once its "
        "tracked connections were removed; more than cooldown: never before its end",
    )
    allocate_wait: float = Field(
        60.0,
        gt=0,
        le=LONGEST,
        description="seconds an allocation waits at most: on a full node, too, for a pod's end and its cooldown",
    )
    coalesce: float = Field(0.05, ge=0, le=5, description="seconds in which requests gather into one EC2 call")


class Ec2Settings(_Section):
    """The EC2 API, and what new network interfaces (ENIs) are made with."""

    endpoint: Endpoint = Field("", description="URL of the EC2 API; empty: the region's own")
    subnets: Annotated[list[Subnet], AfterValidator(forms.distinct)] = Field(
        default_factory=list, description="subnets for new ENIs; empty: the primary ENI's"
    )
    security_groups: Annotated[list[SecurityGroup], AfterValidator(forms.distinct)] = Field(
        default_factory=list,
        max_length=forms.MOST_GROUPS,
        description="security groups of new ENIs; empty: the primary ENI's",
    )
    tags: Annotated[dict[str, str], AfterValidator(forms.tags)] = Field(
        default_factory=dict, description="further tags for new ENIs"
    )
    cluster: str = Field(
        "",
        # Fit for a tag's value, and without what EC2's filters take for wildcards.
        pattern=r"^([A-Za-z0-9][A-Za-z0-9_.:/@+=-]{0,127})?$",
        description="name of the cluster, a tag of new ENIs: its nodes also remove network interfaces that a "
        "terminated node of it has left behind; empty: none",
    )
    timeout: float = Field(10.0, gt=0, le=LONGEST, description="seconds for one call")
    check_permissions: bool = Field(
        True,
        description="ask EC2 once at start, with DryRun, which calls the role may make, and log what it may not; "
        "CloudTrail records such questions",
    )


class ImdsSettings(_Section):
    """The instance metadata service."""

    endpoint: Metadata = Field("http://169.254.169.254", description="URL of the instance metadata service")


class LedgerSettings(_Section):
    """Where the daemon remembers who holds what."""

    path: StoragePath = Field(Path("/run/ipamd/ledger.db"), description="SQLite file with the records")


class CniSettings(_Section):
    """What the daemon shares with the CNI plugin and the container runtime."""

    spool_dir: StoragePath = Field(
        Path("/run/ipamd/released"),
        description="where the plugin leaves a DEL that the daemon did not answer; the folder `released` beside "
        "api.socket is read too, since a plugin that was installed without --spool-dir uses it",
    )
    conf_dir: Annotated[StoragePath | None, BeforeValidator(_empty_is_none)] = Field(
        Path("/etc/cni/net.d"),
        description="where the daemon writes 10-ipamd.conflist once it can serve; empty: nowhere",
    )
    chain: Annotated[list[str | dict[str, Any]], BeforeValidator(forms.chain)] = Field(
        default_factory=_chain,
        description="plugins that 10-ipamd.conflist chains after ipamd-cni: names, or tables as in a conflist "
        "(docs/plugin.md, In a chain); one that is not in the folder of ipamd-cni is left out until it is",
    )
    bin_dirs: list[AbsolutePath] = Field(
        # containerd and CRI-O, Debian's podman, Fedora's.
        default_factory=lambda: [Path("/opt/cni/bin"), Path("/usr/lib/cni"), Path("/usr/libexec/cni")],
        min_length=1,
        description="where runtimes look for plugins; the first one that holds ipamd-cni counts",
    )


class HostSettings(_Section):
    """The node's network. The numbers must be nobody else's; the ENI with device index i takes table, rule priority
    and link group `table + i`, `rule_eni + i` and `table + i`."""

    table: int = Field(1500, ge=256, le=2**31, description="routing table of the pods; an ENI's is this plus i")
    rule_pods: int = Field(500, ge=1, le=32765, description="priority: lookup table pods")
    rule_main: int = Field(1100, ge=1, le=32765, description="priority: main bit, lookup main")
    rule_eni: int = Field(1500, ge=1, le=32000, description="priority: ENI mark, lookup that ENI's table")
    rule_from: int = Field(32000, ge=1, le=32765, description="priority: from the ENI's own address")
    route_protocol: int = Field(158, ge=5, le=255, description="rtm_protocol of every route and rule written")
    nft_table: Annotated[str, AfterValidator(forms.nft_table)] = Field(
        "ipamd", pattern=r"^[a-z][a-z0-9_-]{0,30}$", description="nftables table (inet)"
    )
    mark_mask: int = Field(0x3F, gt=0, le=2**32 - 1, description="bits of the packet mark that hold the ENI")
    main_mark: int = Field(0x40, gt=0, le=2**32 - 1, description="bit of the packet mark for the primary ENI")
    sysctl_dir: AbsolutePath = Field(
        Path("/proc/sys/net"),
        description="where the kernel's network settings are written; for a container whose own are read-only: the "
        "host's, mounted into it",
    )
    snat: bool = Field(True, description="rewrite the source of traffic that leaves the VPC to the primary address")
    snat_exclude: list[Cidr] = Field(default_factory=list, description="further destinations without SNAT")
    pod_imds: Literal["allow", "block"] = Field(
        "allow", description="whether pods reach the instance metadata service, with the node's role"
    )
    mtu: Mtu = Field(0, ge=0, le=9216, description="of ENIs, and of pods' interfaces; 0: the ENI's own")
    pod_mtu: Mtu = Field(0, ge=0, le=9216, description="of pods' interfaces alone; 0: their ENI's")


class PolicySettings(_Section):
    """Kubernetes NetworkPolicy by AWS's network policy agent. Other engines need nothing of this:
    docs/network-policy.md."""

    mode: Literal["off", "standard", "strict"] = Field(
        "off",
        description="`standard`: the daemon tells the agent of each pod, and a pod starts also without its answer; "
        "`strict`: no pod starts before the agent enforces its policies; `off`: there is no agent",
    )
    dir: AbsolutePath = Field(
        Path("/run/aws-node"),
        description="folder of the sockets: the agent's, npa.sock, and ipamd.sock for it (mode 0600)",
    )

    @property
    def socket(self) -> Path:
        """Where the agent asks the daemon."""
        return self.dir / "ipamd.sock"

    @property
    def agent(self) -> Path:
        """Where the daemon asks the agent."""
        return self.dir / "npa.sock"


class MetricsSettings(_Section):
    """What Prometheus and probes read, over HTTP: /metrics, /healthz and /readyz."""

    listen: Annotated[str, AfterValidator(forms.listen)] = Field(
        "127.0.0.1:61678", description="address and port; empty: nowhere"
    )


class TracingSettings(_Section):
    """OpenTelemetry traces."""

    endpoint: Collector = Field(
        "",
        description="URL of a collector that takes OTLP over HTTP, such as http://127.0.0.1:4318; empty: none",
    )


class LogSettings(_Section):
    """What is written to the log, and how."""

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
    policy: PolicySettings = Field(default_factory=PolicySettings)
    metrics: MetricsSettings = Field(default_factory=MetricsSettings)
    tracing: TracingSettings = Field(default_factory=TracingSettings)
    log: LogSettings = Field(default_factory=LogSettings)


def contradictions(settings: Settings) -> Iterator[tuple[tuple[str, ...], str]]:
    """What no single setting shows: (dotted keys that are at odds, what is wrong)."""
    yield from _places(settings)
    yield from _marks(settings.host)
    yield from _priorities(settings.host)


def _places(settings: Settings) -> Iterator[tuple[tuple[str, ...], str]]:
    """Each file and folder is one thing alone, and no file is where a folder has to be."""
    ledger = settings.ledger.path
    files = {
        "api.socket": settings.api.socket,
        "api.read_socket": settings.api.read_socket,
        "ledger.path": ledger,
        **{
            f"ledger.path's {suffix}": Path(f"{ledger}{suffix}")
            for suffix in ("-wal", "-shm", ".lock", ".owed", ".new")
        },
    }
    if settings.policy.mode != "off":
        files |= {f"policy.dir's {path.name}": path for path in (settings.policy.socket, settings.policy.agent)}
    folders = {"cni.spool_dir": settings.cni.spool_dir}
    if settings.cni.conf_dir is not None:
        folders["cni.conf_dir"] = settings.cni.conf_dir
    named = {name: Path(os.path.normpath(path)) for name, path in (files | folders).items()}
    told = set()  # of a ledger's five files the first one is enough
    for first, second in permutations(named, 2):
        keys = (first.partition("'")[0], second.partition("'")[0])
        problem = _clash(first, named[first], second, named[second], first in files)
        if problem and frozenset(keys) not in told:
            told.add(frozenset(keys))
            yield keys, problem


def _clash(first: str, one: Path, second: str, other: Path, is_file: bool) -> str:
    if one == other:
        return f"{first} and {second} are both {one}"
    if is_file and other.is_relative_to(one):
        return f"{first} {one} is a file, and {second} {other} would be below it"
    if first == "cni.spool_dir" and other.is_relative_to(one):
        return f"{first} {one} must hold nothing but DELs, and {second} {other} would be below it"
    return ""


def _marks(host: HostSettings) -> Iterator[tuple[tuple[str, ...], str]]:
    mask, main = f"host.mark_mask {host.mark_mask:#x}", f"host.main_mark {host.main_mark:#x}"
    if host.mark_mask & host.main_mark:
        yield ("host.mark_mask", "host.main_mark"), f"{mask} and {main} overlap"
    if host.main_mark & (host.main_mark - 1):
        yield ("host.main_mark",), f"{main} must be a single bit"
    low = host.mark_mask & -host.mark_mask
    if (host.mark_mask // low) & (host.mark_mask // low + 1):
        yield ("host.mark_mask",), f"{mask} must be one run of adjacent bits"


def _priorities(host: HostSettings) -> Iterator[tuple[tuple[str, ...], str]]:
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
            keys = (first.partition(" ")[0], second)
            yield keys, f"{first} ({lower}) must be less than {second} ({higher}): rules are looked up in that order"
