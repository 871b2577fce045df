"""Side by side against jupyter_server in one run: `make bench` or `python -m benchmarks`."""
