"""Layer 5: `kbridge mcp`, kernels for language models over the Model Context Protocol.

Internal: these modules may change in any release.

docs/agents.md describes the tools. This package is a client of servers; it needs the extra `mcp`.
"""
