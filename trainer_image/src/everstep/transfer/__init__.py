"""Uploading beside the trainer: bytes go from shared memory to storage in a process of their own, without torch."""

from everstep.transfer.memory import Segment, SharedBuffer
from everstep.transfer.protocol import Uploaded
from everstep.transfer.uploader import Uploader

__all__ = ["Segment", "SharedBuffer", "Uploaded", "Uploader"]
