"""The tags by which an ENI is known to be ipamd's.

It belongs to this daemon if it carries `INSTANCE_TAG` with this instance's id. The two after it are for those whom it
may outlive: when it was made (ISO 8601), and in which cluster.

`UNMANAGED_TAG` is for the AWS VPC CNI (README.md of aws/amazon-vpc-cni-k8s, "ENI tags related to Allocation"): its
daemon leaves an ENI with this tag alone. Without it, it takes ipamd's ENIs for its own as soon as it runs on the
node, and gives their pods' addresses to others.
"""

from typing import Final

INSTANCE_TAG: Final = "ipamd.io/instance"
CREATED_TAG: Final = "ipamd.io/created"
CLUSTER_TAG: Final = "ipamd.io/cluster"
UNMANAGED_TAG: Final = "node.k8s.amazonaws.com/no_manage"
