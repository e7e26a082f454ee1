"""The engine: what turns a running job's state into a committed checkpoint, and back. Only its modules import torch."""
