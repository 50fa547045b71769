"""ipamd: an ENI address pool daemon for containers on EC2.

The rooms: `pool` decides (pure), `cloud` talks to EC2 and IMDS, `host` writes the node's kernel, `ledger` keeps
records, `api` serves gRPC, `ctl` is ipamctl, `sim` is the VPC in a box. `daemon` puts them together.
"""

__version__ = "0.1.0"
