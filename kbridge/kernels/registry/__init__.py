"""Kernels and sessions that outlive the server: written to a database and adopted again."""
