"""`everstep`: look at checkpoints in S3 or a directory, and mend them; needs neither a cluster nor torch."""

from everstep.cli.app import main

__all__ = ["main"]
