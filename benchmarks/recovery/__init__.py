"""How long a gang is away after a fault, phase by phase, on the embedded cluster."""
