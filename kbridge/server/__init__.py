"""Floor 5: the server of its own: settings, auth, REST, the websocket handler."""
