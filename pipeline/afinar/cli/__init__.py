"""The command line: configuration → call → summary → exit code."""
