"""Layer 4: the pages for browsers, without the web server that serves them.

Internal: these modules may change in any release.
"""
