"""`ipamd install` puts the CNI plugin, its network configuration, the systemd unit and the drop-ins that keep other
managers of the network off it where the node expects them; `ipamd uninstall` takes them away again.

`plugin` installs the plugin in one of its packagings, `launcher` or `executable`, and measures which of them starts
quickest on this host; `interpreter` finds the Python for the launcher; `files` writes all the rest; `running` tells
systemd; `command` and `uninstall` are the command line.
"""
