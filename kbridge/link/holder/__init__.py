"""Keeps the connections of kernels while no bridge runs."""
