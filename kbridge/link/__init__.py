"""Floor 2: the only place that touches sockets."""
