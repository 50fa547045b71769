"""What pods ask of a node over time: recorded on a real one by `ipamctl`, played again by the simulation of targets."""
