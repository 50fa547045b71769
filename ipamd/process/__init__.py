"""The daemon as a process: how it starts, reads its settings anew, watches folders, keeps tasks that may fail, and
speaks with systemd."""
