"""Data with a position: which samples a step sees is a function of seed, epoch and global position, on any number of
ranks and workers; so a run resumes at the very sample where its checkpoint was made."""

from everstep.data.batches import Batches
from everstep.data.foreign import PerRank
from everstep.data.lines import Lines
from everstep.data.stream import Source, StreamBatches
from everstep.data.verify import Difference, ReplayError, verify

__all__ = ["Batches", "Difference", "Lines", "PerRank", "ReplayError", "Source", "StreamBatches", "verify"]
