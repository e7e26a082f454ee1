"""Decisions: an observation in, a plan out. No I/O, no clock, no randomness; one policy a file."""
