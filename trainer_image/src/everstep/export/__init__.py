"""A committed checkpoint as files that other libraries load, without a process group and in bounded memory."""

from everstep.export.huggingface import Exported, export

__all__ = ["Exported", "export"]
