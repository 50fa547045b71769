"""`kubectl ipamd`: the operator on call has kubectl, not a shell on the node. `plugin` is one file that needs the
standard library alone, so that it can be copied to a machine that has no ipamd."""
