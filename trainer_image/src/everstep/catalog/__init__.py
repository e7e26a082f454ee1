"""The contract in storage: what is committed, who may commit, what is removed. Imports neither torch nor kubernetes."""

from everstep.catalog.documents import Beginning, Catalog, Claim, Entry, Hold, Owner, Removal, Source
from everstep.catalog.job import Claimed, JobCatalog
from everstep.catalog.keys import Location, job_root, progress_key, split_root
from everstep.catalog.manifest import File, Manifest, Progress
from everstep.catalog.policy import Best, Retention
from everstep.catalog.progress import Heartbeat, read_heartbeat, write_heartbeat
from everstep.catalog.register import Register, Snapshot
from everstep.catalog.store import UNCHANGED, S3Access, Store, Unchanged, open_store
from everstep.catalog.transitions import AUTO, Resume, ResumePoint, resume_point
from everstep.catalog.weights import WeightSets

__all__ = [
    "AUTO",
    "UNCHANGED",
    "Beginning",
    "Best",
    "Catalog",
    "Claim",
    "Claimed",
    "Entry",
    "File",
    "Heartbeat",
    "Hold",
    "JobCatalog",
    "Location",
    "Manifest",
    "Owner",
    "Progress",
    "Register",
    "Removal",
    "Resume",
    "ResumePoint",
    "Retention",
    "S3Access",
    "Snapshot",
    "Source",
    "Store",
    "Unchanged",
    "WeightSets",
    "job_root",
    "open_store",
    "progress_key",
    "read_heartbeat",
    "resume_point",
    "split_root",
    "write_heartbeat",
]
