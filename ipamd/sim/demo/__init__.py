"""`ipamd demo`: the main job on one machine, on the VPC in a box."""
