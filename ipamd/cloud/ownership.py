"""The tags by which an ENI is known to be ipamd's.

It belongs to this daemon if it carries `INSTANCE_TAG` with this instance's id. The two others are for those whom it
may outlive: when it was made (ISO 8601), and in which cluster.
"""

from typing import Final

INSTANCE_TAG: Final = "ipamd.io/instance"
CREATED_TAG: Final = "ipamd.io/created"
CLUSTER_TAG: Final = "ipamd.io/cluster"
