"""`everstep-run`, the trainer image's entry point: runs a command as PID 1 has to, and torchrun so that the cause of a
failure survives it."""
