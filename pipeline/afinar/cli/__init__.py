"""Command line: arguments to configuration, one driver call, summary, exit code."""
