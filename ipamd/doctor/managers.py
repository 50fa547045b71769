"""Network managers that claim foreign rules, routes and links unless configured otherwise."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from pathlib import Path

from ipamd.doctor import configuration
from ipamd.doctor.configuration import Sections, last, truthy
from ipamd.doctor.facts import Facts
from ipamd.doctor.report import Finding, fail, note, ok, warn
from ipamd.host.others import AnyLink

INSTALL = "`ipamd install --systemd` writes it"
# A pod's link as these files see it; MACs of pods' links vary.
POD = AnyLink(0, "ipm0123456789a", "", 1500, 0, "veth")


def networkd_foreign(facts: Facts) -> Iterator[Finding]:
    """systemd-networkd removes foreign rules and routes when it configures a link, unless configured otherwise."""
    check = "networkd: rules and routes of others"
    using = _networkd(facts)
    if not using:
        yield ok(check, "systemd-networkd is neither running nor enabled")
        return
    main = configuration.first(facts.root, "systemd/networkd.conf")
    paths = [main] if main else []
    sections = configuration.parse(paths + configuration.files(facts.root, "systemd/networkd.conf.d", "*.conf"))
    kept = {
        key: not truthy(last(sections, "Network", key, "yes"))
        for key in ("ManageForeignRoutingPolicyRules", "ManageForeignRoutes")
    }
    if all(kept.values()):
        yield ok(check, f"systemd-networkd is {using} and leaves them alone")
        return
    wrong = " and ".join(f"{key} is not no" for key, fine in kept.items() if not fine)
    remedy = (
        "write /etc/systemd/networkd.conf.d/50-ipamd.conf: [Network] ManageForeignRoutingPolicyRules=no "
        f"ManageForeignRoutes=no ({INSTALL}), then, before pods run: systemctl restart systemd-networkd"
    )
    effect = f"systemd-networkd is {using} and {wrong}: it removes ours when it starts or configures a link"
    yield fail(check, effect, remedy) if not kept["ManageForeignRoutingPolicyRules"] else warn(check, effect, remedy)


# Defaults of [DHCPv4]; UseGateway= is as UseRoutes=. The main table by its names and its number (rtnetlink(7)).
_DHCP = {"UseRoutes": "yes", "UseGateway": "yes", "RouteTable": "main"}
_MAIN = ("main", "254", "")


def networkd_links(facts: Facts) -> Iterator[Finding]:
    """A .network file for any Ethernet device means also secondary ENIs and the host's ends of pods' veths."""
    check = "networkd: our links"
    if not _networkd(facts):
        yield ok(check, "systemd-networkd is neither running nor enabled")
        return
    troubles = []
    matched = _network_for(facts, POD, "veth")
    if matched and not truthy(last(matched[1], "Link", "Unmanaged")):
        remedy = (
            f"write /etc/systemd/network/05-ipamd-pods.network: [Match] Name=ipm* [Link] Unmanaged=yes ({INSTALL})"
        )
        troubles.append(warn(check, f"{matched[0]} matches the links of pods (ipm*)", remedy))
    for eni in facts.secondary:
        matched = _network_for(facts, eni.link, eni.driver)
        if not matched or truthy(last(matched[1], "Link", "Unmanaged")):
            continue
        remedy = (
            f"write /etc/systemd/network/05-ipamd-enis.network: [Match] Driver=ena ixgbevf vif Name=!{facts.primary} "
            "[Link] Unmanaged=yes, then networkctl reload"
        )
        if _rivals(matched[1]):
            found = f"{matched[0]} has DHCP on {eni.link.name}, a secondary ENI: a second default route for the host"
            troubles.append(fail(check, found, remedy))
        else:
            found = f"{matched[0]} matches {eni.link.name}, a secondary ENI: its addresses are taken for foreign"
            troubles.append(warn(check, found, remedy))
    yield from troubles or [ok(check, "no .network file matches secondary ENIs or the links of pods")]


def _rivals(sections: Sections) -> bool:
    """Whether DHCP brings a default route into the main table: systemd.network(5), section [DHCPv4]."""
    dhcp = {key: last(sections, "DHCPv4", key, default) for key, default in _DHCP.items()}
    return (
        last(sections, "Network", "DHCP").lower() in ("yes", "true", "ipv4", "1", "on")
        and truthy(dhcp["UseRoutes"])
        and truthy(dhcp["UseGateway"])
        and dhcp["RouteTable"] in _MAIN
    )


def mac_policy(facts: Facts) -> Iterator[Finding]:
    """Pods hold a permanent neighbour entry with the MAC of the host's end. udev's policy "persistent" replaces MACs
    that the kernel drew, and leaves those that were given (addr_assign_type 3, NET_ADDR_SET) as they are."""
    check = "udev: MACs of pods' links"
    drawn = sorted(link.name for link in facts.pods if facts.mac_origins.get(link.name) not in ("3", "", None))
    policy, path = "", None
    for path in configuration.files(facts.root, "systemd/network", "*.link"):
        sections = configuration.with_drop_ins(facts.root, path, "systemd/network")
        if _matches(sections, POD, "veth"):
            policy = last(sections, "Link", "MACAddressPolicy")
            break
    remedy = (
        "write /etc/systemd/network/05-ipamd-pods.link: [Match] OriginalName=ipm* [Link] MACAddressPolicy=none "
        f"NamePolicy= ({INSTALL}), then udevadm control --reload"
    )
    if drawn:
        found = f"{', '.join(drawn)}: the MAC was not given when the link was made or was changed since"
        yield fail(check, found, f"{remedy}, and start these pods anew")
    elif policy == "persistent":
        yield note(check, f"{path} sets MACAddressPolicy=persistent, which leaves MACs alone that were given", remedy)
    else:
        yield ok(check, "udev leaves them as they were made")


def network_manager(facts: Facts) -> Iterator[Finding]:
    check = "NetworkManager: our links"
    if "NetworkManager" not in facts.processes:
        yield ok(check, "NetworkManager is not running")
        return
    specs = _unmanaged(facts.root)
    troubles = []
    if not (_specified(specs, POD, "veth") or _udev_unmanages_veths(facts.root)):
        remedy = (
            "write /etc/NetworkManager/conf.d/50-ipamd.conf: [keyfile] unmanaged-devices+=interface-name:ipm* "
            f"({INSTALL}), then systemctl reload NetworkManager"
        )
        troubles.append(warn(check, "NetworkManager manages the links of pods (ipm*)", remedy))
    managed = [eni.link.name for eni in facts.secondary if not _specified(specs, eni.link, eni.driver)]
    if managed:
        remedy = (
            "write /etc/NetworkManager/conf.d/51-ipamd-enis.conf: [keyfile] unmanaged-devices+="
            f"{','.join(f'interface-name:{name}' for name in managed)} (or, for ENIs to come, all names but "
            f"{facts.primary}), then systemctl reload NetworkManager"
        )
        found = (
            f"NetworkManager manages {', '.join(managed)}: with DHCP they get a default route that rivals the host's"
        )
        troubles.append(fail(check, found, remedy))
    yield from troubles or [ok(check, "NetworkManager is running and leaves ENIs and pods' links alone")]


def nm_cloud_setup(facts: Facts) -> Iterator[Finding]:
    """It gives the instance's secondary addresses to the host, pods' among them, and its rules take their traffic."""
    check = "nm-cloud-setup"
    wanted = [
        path
        for folder in configuration.FOLDERS
        for path in (facts.root / folder / "systemd/system").glob("*.wants/nm-cloud-setup.*")
    ]
    if wanted:
        remedy = "systemctl disable --now nm-cloud-setup.service nm-cloud-setup.timer, and reboot or remove its rules"
        yield fail(
            check, f"{wanted[0].name} is enabled: it puts pods' addresses and rules of its own on ENIs", remedy
        )
    else:
        yield ok(check, "not enabled")


def ec2_net_utils(facts: Facts) -> Iterator[Finding]:
    check = "ec2-net-utils"
    for name, package in (
        ("99-vpc-policy-routes.rules", "amazon-ec2-net-utils"),
        ("53-ec2-network-interfaces.rules", "ec2-net-utils"),
    ):
        for path in configuration.files(facts.root, "udev/rules.d", name):
            if path.stat().st_size:
                remedy = f"remove the package {package}, or mask it: ln -s /dev/null /etc/udev/rules.d/{name}"
                yield warn(check, f"{path}: {package} gives each new ENI addresses, routes and rules", remedy)
                return
    yield ok(check, "not installed, or masked")


CHECKS = (networkd_foreign, networkd_links, mac_policy, network_manager, nm_cloud_setup, ec2_net_utils)


def _networkd(facts: Facts) -> str:
    """ "running", "enabled" or nothing."""
    if "systemd-network" in facts.processes:  # cut by the kernel
        return "running"
    wants = (facts.root / "etc/systemd/system").glob("*.wants/systemd-networkd.service")
    return "enabled" if any(True for _ in wants) else ""


def _network_for(facts: Facts, link: AnyLink, driver: str) -> tuple[Path, Sections] | None:
    """The first .network file that matches: the one in force."""
    for path in configuration.files(facts.root, "systemd/network", "*.network"):
        sections = configuration.with_drop_ins(facts.root, path, "systemd/network")
        if _matches(sections, link, driver):
            return path, sections
    return None


def _matches(sections: Sections, link: AnyLink, driver: str) -> bool:
    """systemd.network(5), section [Match]. Conditions that can't be checked here (Path=, Property= and the like)
    count as met: a false alarm is better than none."""
    conditions = sections.get("Match", [])
    facts = {
        "Name": {link.name, *link.alternative_names},
        "OriginalName": {link.name},
        "MACAddress": {link.mac},
        "PermanentMACAddress": {link.mac},
        "Type": {"ether"},
        "Kind": {link.kind},
        "Driver": {driver} if driver else None,
    }
    for key in {key for key, _ in conditions}:
        patterns: list[str] = []
        for name, value in conditions:
            if name == key:
                patterns = [*patterns, *value.split()] if value else []  # an empty assignment starts anew
        values = facts.get(key)
        if patterns and values is not None and not _any(patterns, values):
            return False
    return bool(conditions)


def _any(patterns: list[str], values: set[str]) -> bool:
    inverted = patterns[0].startswith("!")
    patterns = [pattern.removeprefix("!").lower() for pattern in patterns]
    found = any(value and fnmatch.fnmatchcase(value.lower(), pattern) for value in values for pattern in patterns)
    return found != inverted


def _unmanaged(root: Path) -> list[str]:
    """NetworkManager.conf(5): the distribution's files, then the main one, then the administrator's."""
    listed = configuration.files(root, "NetworkManager/conf.d", "*.conf")
    own = [path for path in listed if path.is_relative_to(root / "etc")]
    main = root / "etc/NetworkManager/NetworkManager.conf"
    specs: list[str] = []
    for key, value in configuration.parse([*(p for p in listed if p not in own), main, *own]).get("keyfile", []):
        given = [spec.strip() for spec in value.replace(";", ",").split(",") if spec.strip()]
        if key == "unmanaged-devices":
            specs = given
        elif key == "unmanaged-devices+":
            specs = specs + given
        elif key == "unmanaged-devices-":
            specs = [spec for spec in specs if spec not in given]
    return specs


def _specified(specs: list[str], link: AnyLink, driver: str) -> bool:
    """NetworkManager.conf(5), "Device List Format"."""
    matched = False
    for spec in specs:
        rest = spec.removeprefix("except:")
        kind, _, value = rest.partition(":")
        hit = (
            rest == "*"
            or (kind == "interface-name" and fnmatch.fnmatchcase(link.name, value.lstrip("=~")))
            or (kind == "mac" and value.lower() == link.mac)
            or (kind == "type" and value == (link.kind or "ethernet"))
            or (kind == "driver" and value == driver)
            or (not value and fnmatch.fnmatchcase(link.name, rest))
        )
        if hit and rest != spec:
            return False
        matched |= hit
    return matched


def _udev_unmanages_veths(root: Path) -> bool:
    """NetworkManager ships such a rule; distributions may leave it out."""
    lines = [
        line
        for path in configuration.files(root, "udev/rules.d", "*.rules")
        for line in path.read_text(errors="replace").splitlines()
    ]
    return any("NM_UNMANAGED" in line and "veth" in line and not line.lstrip().startswith("#") for line in lines)
