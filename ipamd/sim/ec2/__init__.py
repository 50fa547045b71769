"""A double of EC2 that is as strict as EC2 about what an address allocator lives by: limits, ownership, time.

moto answers the same calls without limits, delays, ClientToken or unique addresses, so an allocator that is wrong
passes there. From the rules outwards: `rules` (state, rules and limits of requests, pure), `cloud` (all of it in real
time, with packets), `consistency` and `metadata` (what is seen of it how late), `actions` and `views` (calls and
replies), `wire` (the Query protocol), `faults` (delays and errors that a test asks for), `api` (HTTP).
`sim/servers.py` serves it together with instance metadata and control.
"""
