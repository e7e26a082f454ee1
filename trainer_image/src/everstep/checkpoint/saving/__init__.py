"""Saves: from live tensors, through shared memory, to stored files that the catalog can commit."""
