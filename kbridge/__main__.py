"""`python -m kbridge`."""

from kbridge.server.main import main

if __name__ == "__main__":
    main()
