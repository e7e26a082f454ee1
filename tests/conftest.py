"""Fixtures that every tier may ask for; they start nothing until a test does."""

pytest_plugins = ["tests.plugins.cluster"]
