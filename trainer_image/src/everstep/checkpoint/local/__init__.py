"""The local tier: saves on the nodes, every few steps, from which a group that restarts in place resumes."""
