"""What other ways to run a gang take for the same recovery, in the same run."""
