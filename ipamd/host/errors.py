"""The errors of the node's kernel."""

from __future__ import annotations


class HostError(Exception):
    """The kernel or a tool refused something that the node needs; the message says what to do."""


class LinkTimeout(HostError):
    """An ENI is attached, but its network device did not appear."""


class NftError(HostError):
    """nft is missing, does not answer or refused our table."""
