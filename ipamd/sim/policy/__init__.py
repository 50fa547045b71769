"""`ipamd simulate policy`: what each of several settings of the pool would make of a node's pods.

The pool is the daemon's own, in the virtual time of `ipamd.sim.virtual`. profiles.py makes pods up where no trace was
recorded, choices.py reads the settings, replay.py runs the pods against one of them, figures.py sums up what
happened, and the rest shows it.
"""
