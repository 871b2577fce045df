"""Floor 1: decisions. Events in, actions out: no I/O, no clock (`now` is passed in), no async.

Internal: these modules may change in any release.
"""
