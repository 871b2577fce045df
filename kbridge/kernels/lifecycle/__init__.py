"""The life of one kernel that this server starts: process, restarts, pool, culling."""
