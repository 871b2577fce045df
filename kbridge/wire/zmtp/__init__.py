"""ZMTP 3.0 and 3.1 (ZeroMQ RFC 23 and 37) with the NULL mechanism: bytes in, bytes out."""
