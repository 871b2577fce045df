"""The HTTP server: accepts connections and limits what unauthenticated clients can use."""
