"""What the commands `ipamd` and `ipamctl` have in common: their first word, and their standard streams."""
