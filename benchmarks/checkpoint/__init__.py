"""Checkpoints measured, beside those of peers."""
