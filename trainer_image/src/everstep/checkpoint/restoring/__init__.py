"""Restores: which checkpoint a run begins with, whether it fits, and its verified bytes into the live tensors."""
