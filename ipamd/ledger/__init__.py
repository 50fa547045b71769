"""Durable records: which container holds which address, what is cooling, and which EC2 mutations are under way.

The ledger is what lets the daemon be killed at any instant. It decides nothing: the pool says what to record, the
runner commits it before anything that rests on it leaves the daemon.
"""

from ipamd.ledger.error import LedgerCause, LedgerError
from ipamd.ledger.ledger import Ledger
from ipamd.ledger.rows import Contents

__all__ = ["Contents", "Ledger", "LedgerCause", "LedgerError"]
