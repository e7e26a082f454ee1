"""Faults at every phase of a save, of its removal and of a restore, against a real S3 server and real ranks."""
