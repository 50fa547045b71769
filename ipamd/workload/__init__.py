"""What pods ask of a node over time: `ipamctl` records it on a node, the simulation of targets plays it again."""
