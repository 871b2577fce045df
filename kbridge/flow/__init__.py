"""Layer 1: decisions. Takes events, returns actions; no I/O, no async, and `now` is a parameter.

Internal: these modules may change in any release.
"""
