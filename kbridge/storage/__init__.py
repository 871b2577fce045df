"""Layer 2: the journals of kernels on disk.

Internal: these modules may change in any release.

Each kernel has a directory with segment files, to which batches of frames are appended, and a small
log of states. All work on files is done in threads, by functions that get all they need as
arguments and return their results. The event loop owns everything else: which frames are in which
file, and which files are dropped.
"""
