"""Nodes in virtual time: the pool itself, a model of its incumbent, and what EC2 and a kubelet do around them.

A discrete-event simulation: nothing sleeps, so a day of a node passes in seconds and thousands of nodes fit into one
process. The pool is the one that the daemon runs; only what carries out its effects differs.
"""
