"""Runs the command line."""

from dev.cli import main

main()
