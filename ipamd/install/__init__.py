"""`ipamd install` puts the CNI plugin, its network configuration, the systemd unit and the drop-ins that keep other
managers of the network off it where the node expects them; `ipamd uninstall` takes them away again.

`plugin` installs the plugin in one of its packagings, `launcher` or `executable`, and measures which of them starts
quickest on this host; `interpreter` finds the Python for the launcher; `files` writes all the rest; `running` tells
systemd; `command` and `uninstall` are the command line.
"""

from __future__ import annotations

from ipamd.install.command import add_parser
from ipamd.install.files import (
    BIN_DIR,
    CONFLIST,
    DROP_INS,
    UNIT,
    write_conflist,
    write_drop_ins,
    write_systemd_files,
    write_unit,
)
from ipamd.install.interpreter import DISTRIBUTION_PYTHON, Interpreter, find_interpreter
from ipamd.install.placing import InstallError
from ipamd.install.plugin import InstalledPlugin, install_plugin
from ipamd.neighbours.chain import PLUGIN

__all__ = [
    "BIN_DIR",
    "CONFLIST",
    "DISTRIBUTION_PYTHON",
    "DROP_INS",
    "PLUGIN",
    "UNIT",
    "InstallError",
    "InstalledPlugin",
    "Interpreter",
    "add_parser",
    "find_interpreter",
    "install_plugin",
    "write_conflist",
    "write_drop_ins",
    "write_systemd_files",
    "write_unit",
]
