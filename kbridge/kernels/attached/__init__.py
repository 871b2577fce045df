"""Kernels that another program started."""
