"""Floor 5: the standalone server."""
