"""What is looked at in a pass: the job and what belongs to it, live, and its registers by conditional requests."""

from everstep_operator.observe.observer import Observer, Seen
from everstep_operator.observe.partings import remember
from everstep_operator.observe.registers import read_registers

__all__ = ["Observer", "Seen", "read_registers", "remember"]
