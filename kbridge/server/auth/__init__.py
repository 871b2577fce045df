"""Authentication: access rules, the token, its storage, and CORS headers."""
