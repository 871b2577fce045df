"""Layer 5: the standalone server.

Internal: these modules may change in any release.
"""
