"""The daemon, put together: its start phase by phase, what it answers at, and what goes on beside that."""
