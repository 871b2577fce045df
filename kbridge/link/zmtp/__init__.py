"""The link to a kernel with ZMTP 3.x on plain sockets, without threads."""
