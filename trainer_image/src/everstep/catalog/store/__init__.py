"""Stores: object storage and POSIX directories behind one small protocol."""

from everstep.catalog.store.access import S3Access
from everstep.catalog.store.base import (
    UNCHANGED,
    KeyNotFound,
    ObjectInfo,
    Store,
    SwapRefused,
    SwapUnanswered,
    Unchanged,
    Versioned,
    never,
)
from everstep.catalog.store.location import open_store

__all__ = [
    "UNCHANGED",
    "KeyNotFound",
    "ObjectInfo",
    "S3Access",
    "Store",
    "SwapRefused",
    "SwapUnanswered",
    "Unchanged",
    "Versioned",
    "never",
    "open_store",
]
