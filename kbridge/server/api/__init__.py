"""Request handlers: REST, the kernel websocket and the HTML pages."""
