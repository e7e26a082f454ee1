"""What a checkpoint engine must never do, tried many times over: EVERSTEP_GUARDS=full is the published size."""
