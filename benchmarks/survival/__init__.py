"""The faults of tests/survival, on everstep and on what people would use instead."""
