"""The command line: settings, subcommands and the terminal."""
