"""`python -m everstep.launch COMMAND …`, the same as `everstep-run`."""

from everstep.launch.main import run

run()
