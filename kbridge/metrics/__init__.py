"""Layer 4: metrics for Prometheus, of the standalone server and of the extension.

Internal: these modules may change in any release. The names of metrics are in docs/monitoring.md.
"""
