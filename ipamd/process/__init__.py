"""What surrounds the daemon's main job: its start phase by phase, the tasks that may fail without ending it, the DELs
in the spool, and what it announces to systemd and to the runtime."""
