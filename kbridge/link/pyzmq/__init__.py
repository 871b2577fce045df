"""The link to a kernel with libzmq, through pyzmq."""
