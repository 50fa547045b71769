"""Other programs on the node, as ipamd finds them: the CNI plugins chained after ours, the kubelet, and the process
that listens at a socket. The daemon, `ipamctl`, the doctor and `ipamd install` look at them alike."""
