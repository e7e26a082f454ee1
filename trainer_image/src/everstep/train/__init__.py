"""A ready recipe, `torchrun -m everstep.train`: a causal language model on real text, sharded with FSDP2."""
