"""What everstep takes and how long: each benchmark is a package with a `__main__`, its raw results beside it."""
