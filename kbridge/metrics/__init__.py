"""Layer 4: metrics for Prometheus, of the standalone server and of the extension."""
