"""Layer 4: the life and death of kernels; jupyter_client ends here.

Internal: these modules may change in any release.
"""
