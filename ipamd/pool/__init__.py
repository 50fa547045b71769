"""The decisions: a pure state machine. No I/O, no clock, no asyncio; imports nothing else of the project."""
