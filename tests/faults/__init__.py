"""Real gangs of a real operator on a real node, killed at moments chosen to the request."""
