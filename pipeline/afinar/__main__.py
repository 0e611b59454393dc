"""`python -m afinar COMMAND …`, the same as the console script."""

from afinar.cli.main import entry

if __name__ == "__main__":
    entry()
