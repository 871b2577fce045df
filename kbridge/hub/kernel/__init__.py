"""The half of a hub that connects to one kernel process; it knows no websockets."""
