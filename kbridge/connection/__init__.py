"""Floor 4: the connection classes that Jupyter Server's users know, thin over the hub."""
