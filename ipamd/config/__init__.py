"""Reads the settings, which `ipamd.settings` defines: their sources, the messages about bad ones, and the command
`ipamd config`.
"""
