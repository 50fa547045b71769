"""The plugins that the network configuration chains after ours: can a runtime run them, and do host ports work?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ipamd.doctor.facts import Facts
from ipamd.doctor.report import Finding, fail, note, ok, warn
from ipamd.install import network_files
from ipamd.install.files import CONFLIST
from ipamd.install.network_files import NetworkFile
from ipamd.install.placing import below
from ipamd.neighbours.chain import PLUGIN, Binaries, Chain, chain, folder_of_plugins, names

_CHECK = "host ports"
_NOTHING = "hostPort of a pod does nothing"


def chained(facts: Facts) -> Iterator[Finding]:
    """By the file that runtimes take, whose content counts and not its name; before there is one, by the settings."""
    cni = facts.settings.cni
    if cni.conf_dir is None:
        yield note(_CHECK, "could not tell: cni.conf_dir is empty")
        return
    folder = folder_of_plugins(cni.bin_dirs, facts.root)
    planned = _planned(facts, folder)
    for sentence in planned.left_out:
        yield warn("cni.chain", f"{sentence}: pods start without it", "install it, or change cni.chain")
    first = next(iter(network_files.files(below(facts.root, cni.conf_dir))), None)
    if first is None:
        yield _expected(facts, planned, folder)
    elif PLUGIN in first.types:
        yield from _found(facts, first, planned, folder)
    else:
        yield note(_CHECK, f"could not tell: runtimes take {first.name}")


def _planned(facts: Facts, folder: Path | None) -> Chain:
    cni = facts.settings.cni
    binaries = Binaries().look(cni.chain, below(facts.root, folder)) if folder else {}
    return chain(cni.chain, binaries, folder, None if "chain" in cni.model_fields_set else ())


def _found(facts: Facts, file: NetworkFile, planned: Chain, folder: Path | None) -> Iterator[Finding]:
    missing = [name for name in file.types if folder and not below(facts.root, folder / name).exists()]
    if missing:
        remedy = f"install {missing[0]} in {folder}"
        if file.name != CONFLIST:
            remedy += f", or take it out of {file.name}"
        yield fail(_CHECK, f"{file.name} names {', '.join(missing)}, not in {folder}: no pod can start", remedy)
    elif any(_takes_ports(plugin) for plugin in file.plugins):
        yield ok(_CHECK, f"{file.name} chains {', '.join(name for name in file.types if name != PLUGIN)}")
        if "1.1.0" not in file.versions:
            found = f"{file.name} is for CNI {file.versions[0]}: runtimes ask for neither STATUS nor GC"
            yield note("CNI version", found, "plugins of containernetworking 1.5 and later speak 1.1.0")
    elif file.name == CONFLIST:
        yield _expected(facts, planned, folder)
    else:
        remedy = 'add {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true} to its plugins'
        yield warn(_CHECK, f"{file.name} chains no plugin for them: {_NOTHING}", remedy)


def _takes_ports(plugin: dict[str, object]) -> bool:
    capabilities = plugin.get("capabilities")
    return isinstance(capabilities, dict) and capabilities.get("portMappings") is True


def _expected(facts: Facts, planned: Chain, folder: Path | None) -> Finding:
    """By what the daemon writes as things are."""
    if any(_takes_ports(dict(plugin)) for plugin in planned.plugins):
        return ok(_CHECK, f"the daemon chains {', '.join(planned.names)} when it starts, and when they change")
    if "portmap" not in names(facts.settings.cni.chain):
        return note(_CHECK, f"cni.chain has no portmap: {_NOTHING}", 'cni.chain = ["portmap"]')
    if folder is None:
        return note(_CHECK, f"could not tell: no folder of cni.bin_dirs has {PLUGIN}")
    return warn(
        _CHECK,
        f"portmap is not in {folder}, or can't be run: {_NOTHING}",
        "put it there, and the daemon chains it at once: it is one of the plugins of containernetworking (Debian's "
        "package has them in /usr/lib/cni). If no pod needs host ports: cni.chain = []",
    )


CHECKS = (chained,)
