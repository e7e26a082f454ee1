"""Weights for consumers while the training goes on: published by the trainer, watched for by who infers."""

from everstep.weights.watcher import Weights, WeightsWatcher

__all__ = ["Weights", "WeightsWatcher"]
