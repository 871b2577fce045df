"""Floor 3: connection files, ports and tunnels."""
