"""What the operator is told from outside: its settings and the storage that namespaces may use."""
