"""Internal: several servers that are one service, with their leases and kernels in a database."""
