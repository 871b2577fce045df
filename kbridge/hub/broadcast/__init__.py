"""The half of a hub that delivers a kernel's output to websockets; it knows no kernel sockets."""
