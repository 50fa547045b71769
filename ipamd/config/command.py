"""`ipamd config`: show, check and write settings."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ipamd.config.load import Loaded

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


# A dump of a cluster's objects can be large, and a disk image is larger.
MOST_BYTES = 64 << 20


def add_parser(commands: Commands) -> None:
    config = commands.add_parser("config", help="look at the settings, or make some")
    actions = config.add_subparsers(dest="action", required=True, metavar="ACTION")
    text = "validate the settings; show those that are not the default's, and where they came from"
    check = actions.add_parser(
        "check",
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog="exit codes: 0 the settings can be used, 1 they can't",
    )
    add_config(check)
    check.add_argument("--all", action="store_true", help="show every setting")
    check.add_argument("-o", "--output", choices=("table", "json"), default="table", help="(default: table)")
    check.set_defaults(run=_check)
    for name, text, run in (
        ("example", "print a settings file in which every setting stands with its default", _example),
        ("reference", "print every setting with its default and meaning, as Markdown (docs/config.md)", _reference),
    ):
        actions.add_parser(name, help=text).set_defaults(run=run)
    text = "print a settings file made from those of the AWS VPC CNI"
    importing = actions.add_parser(
        "import-vpc-cni",
        help=text,
        description=f"{text[0].upper()}{text[1:]}, with a comment on each variable that has no counterpart.",
        epilog="for instance: kubectl -n kube-system get daemonset aws-node -o yaml | ipamd config import-vpc-cni -",
    )
    importing.add_argument(
        "file",
        type=Path,
        metavar="FILE",
        help="DaemonSet, Pod or List, Helm values or the EKS add-on's configuration, in YAML or JSON; or NAME=VALUE "
        "lines as `kubectl set env --list` prints; - for stdin",
    )
    importing.set_defaults(run=_import)


def add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="settings (default: /etc/ipamd/config.toml if it exists)"
    )


def fail(message: str) -> int:
    for line in message.splitlines():
        sys.stderr.write(f"ipamd: {line}\n")
    return 1


def _check(args: argparse.Namespace) -> int:
    from ipamd.config.doubts import doubts
    from ipamd.config.error import SettingsError
    from ipamd.config.load import load
    from ipamd.config.obstacles import obstacles

    try:
        loaded = load(args.config)
    except SettingsError as error:
        return fail(str(error))
    if in_the_way := list(obstacles(loaded.settings)):
        return fail("\n".join(f"{loaded.origins.get(each.key, 'default')}: {each.text}" for each in in_the_way))
    found = [*doubts(loaded.settings), *(f"{u.variable}={u.value}: {u.meaning}" for u in loaded.unsupported)]
    if args.output == "json":
        data = {"settings": _as_data(loaded), "doubts": found, "service_links": loaded.service_links}
        sys.stdout.write(json.dumps(data, indent=2) + "\n")
        return 0
    rows = [row for row in _as_data(loaded) if args.all or row["origin"] != "default"]
    widths = [max((len(str(row[column])) for row in rows), default=0) for column in ("key", "value")]
    for row in rows:
        differs = row["value"] != row["default"]
        default = f"(default {row['default']})  " if differs else ""
        line = f"{row['key']:{widths[0]}}  {row['value']:{widths[1]}}  {default}{row['origin']}"
        sys.stdout.write(("* " if differs else "  ") + line.rstrip() + "\n")
    count = sum(row["value"] != row["default"] for row in _as_data(loaded))
    how = "all are the defaults" if not count else f"{count} differ{'s' * (count == 1)} from the default (*)"
    sys.stdout.write(f"The settings can be used; {how}.\n")
    for doubt in found:
        sys.stdout.write(f"Doubtful: {doubt}.\n")
    if loaded.service_links:
        names = ", ".join(sorted(loaded.service_links))
        sys.stdout.write(
            f"Ignored, because Kubernetes sets them for a Service: {names} (enableServiceLinks: false in the pod's "
            "specification leaves them out).\n"
        )
    return 0


def _as_data(loaded: Loaded) -> list[dict[str, str]]:
    """Values as they would stand in the file."""
    from ipamd.config.reference import toml_value
    from ipamd.settings import Settings

    defaults = {
        f"{section}.{key}": value
        for section, values in Settings().model_dump(mode="json").items()
        for key, value in values.items()
    }
    return [
        {"key": key, "value": toml_value(value), "default": toml_value(defaults[key]), "origin": origin}
        for key, value, origin in loaded.effective()
    ]


def _example(args: argparse.Namespace) -> int:
    from ipamd.config import reference

    sys.stdout.write(reference.example())
    return 0


def _reference(args: argparse.Namespace) -> int:
    from ipamd.config import reference

    sys.stdout.write(reference.page())
    return 0


def _import(args: argparse.Namespace) -> int:
    from ipamd.config import manifest, text
    from ipamd.config.error import SettingsError

    stdin = str(args.file) == "-"
    name = "standard input" if stdin else str(args.file)
    try:
        given = text.decode(sys.stdin.buffer.read()) if stdin else text.read(args.file, MOST_BYTES)
        sys.stdout.write(manifest.imported(manifest.variables(given)))
    except (FileNotFoundError, text.Unreadable, manifest.NoManifest) as error:
        return fail(f"{name}: {error.strerror if isinstance(error, OSError) else error}")
    except SettingsError as error:
        return fail(str(error))
    return 0
