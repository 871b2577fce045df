"""Floor 0: bytes to messages and back. The standard library alone: no I/O, no clock, no async."""
