"""What the daemon says of itself: conditions that last, events in memory and in the log, times, and traces. Each part
that measures or fails uses it; it knows none of them."""
