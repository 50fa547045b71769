"""Everything about the settings but the settings themselves, which are in `ipamd.settings`: where they are read from,
what is said about bad ones, and the command `ipamd config`."""
