"""Kubernetes NetworkPolicy by AWS's network policy agent, which takes part in each pod's start and end.

Engines that find pods by their addresses (kube-router, kube-network-policies) need nothing of this:
docs/network-policy.md.
"""
