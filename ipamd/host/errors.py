"""What can go wrong with the node's kernel, as types."""

from __future__ import annotations


class HostError(Exception):
    """The kernel or a tool refused something the node needs; the message says what and what to do."""


class LinkTimeout(HostError):
    """An ENI is attached, but its network device did not appear."""


class NftError(HostError):
    """nft is missing, does not answer or refused our table."""
