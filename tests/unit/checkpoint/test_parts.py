"""The pure parts of the engine: blocks, staging, metadata, packed state, errors of a gang, environment."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint.metadata import (
    _MEM_FORMAT_ENCODING,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from everstep.catalog.manifest import BLOCK
from everstep.catalog.store.posix import PosixStore
from everstep.checkpoint import metadata
from everstep.checkpoint.blocks import Span, covering, describe_file, read_verified, read_whole
from everstep.checkpoint.environment import JobEnvironment, read_environment
from everstep.checkpoint.gang import Failure, worst
from everstep.checkpoint.state import plain
from everstep.checkpoint.state.rng import seed_for
from everstep.errors import (
    CheckpointCorruptError,
    CheckpointError,
    CheckpointUnreadableError,
    FencedError,
    InvalidOperationError,
)


def test_a_partial_read_covers_whole_blocks() -> None:
    size = 3 * BLOCK + 10
    assert covering(5, 10, size) == Span(0, BLOCK)
    assert covering(BLOCK - 1, 2, size) == Span(0, 2 * BLOCK)
    assert covering(3 * BLOCK, 10, size) == Span(3 * BLOCK, size)


def test_reads_are_verified(tmp_path: Path) -> None:
    store = PosixStore(tmp_path)
    body = os.urandom(2 * BLOCK + 77)
    store.put("f", body)
    file = describe_file("__0_0.distcp", body)
    assert read_whole(store, "f", file) == body
    assert read_verified(store, "f", file, Span(BLOCK, 2 * BLOCK)) == body[BLOCK : 2 * BLOCK]
    store.put("f", body[:BLOCK] + bytes([body[BLOCK] ^ 1]) + body[BLOCK + 1 :])
    assert read_verified(store, "f", file, Span(0, BLOCK)) == body[:BLOCK]
    with pytest.raises(CheckpointCorruptError, match="bytes 262144 to 524287"):
        read_whole(store, "f", file)
    store.put("f", body[:-1])
    with pytest.raises(CheckpointCorruptError, match="bytes 524288 to"):
        read_whole(store, "f", file)
    with pytest.raises(CheckpointCorruptError, match="missing"):
        read_whole(store, "absent", file)


class _Evil:
    def __reduce__(self) -> Any:
        return (os.system, ("true",))


def test_metadata_runs_nobodys_code() -> None:
    item = TensorStorageMetadata(TensorProperties(dtype=torch.bfloat16), torch.Size([2, 3]), [])
    good = Metadata({"model.w": item}, storage_data={MetadataIndex("model.w", [0, 0]): None})
    found = metadata.decode(metadata.encode(good, "somewhere"))
    assert found.state_dict_metadata == good.state_dict_metadata
    for bad in (_Evil(), Metadata({}, planner_data=_Evil(), storage_data={}), {"a": 1}, Metadata({})):
        with pytest.raises(CheckpointUnreadableError):
            metadata.decode(pickle.dumps(bad))
    with pytest.raises(CheckpointUnreadableError):
        metadata.decode(b"\x80")


class _ByName:
    """Pickled as Python 3.11.0 to 3.11.3 pickle an enum's member."""

    def __init__(self, owner: object, name: str) -> None:
        self.reduced = (getattr, (owner, name))

    def __reduce__(self) -> Any:
        return self.reduced


def test_metadata_of_another_python_holds_its_enums_by_name() -> None:
    good = Metadata({}, planner_data=_ByName(_MEM_FORMAT_ENCODING, "TORCH_CHANNELS_LAST"), storage_data={})
    assert metadata.decode(pickle.dumps(good)).planner_data is _MEM_FORMAT_ENCODING.TORCH_CHANNELS_LAST
    for owner, name in ((Metadata, "__init__"), (_MEM_FORMAT_ENCODING, "mro"), (_MEM_FORMAT_ENCODING, "__class__")):
        with pytest.raises(CheckpointUnreadableError, match="has no place"):
            metadata.decode(pickle.dumps(Metadata({}, planner_data=_ByName(owner, name), storage_data={})))


def test_packed_state_comes_back() -> None:
    state = {
        "a": [1, 2.5, "x", None, True, b"\x00\x01"],
        3: (torch.arange(3), {"deep": np.float32(1.5)}),
        "arrays": [
            np.arange(6, dtype=np.int16).reshape(2, 3),
            np.empty(0),
            np.bool_(True),
        ],
        "set": {1, 2},
    }
    found = plain.unpack(plain.pack(state, "state"))
    assert found["a"] == state["a"]
    assert torch.equal(found[3][0], torch.arange(3))
    assert found[3][1] == {"deep": 1.5}
    assert np.array_equal(found["arrays"][0], np.arange(6).reshape(2, 3))
    assert found["arrays"][0].dtype == np.int16
    assert found["set"] == {1, 2}


@pytest.mark.parametrize("value", [{"a": [object()]}, {"f": len}, {"o": np.array([object()])}, {object(): 1}])
def test_packed_state_refuses_what_would_not_come_back(value: Any) -> None:
    with pytest.raises(InvalidOperationError, match="state"):
        plain.pack(value, "state")


def test_packed_state_runs_nobodys_code() -> None:
    stream = io.BytesIO()
    torch.save(_Evil(), stream)
    with pytest.raises(CheckpointUnreadableError):
        plain.unpack(torch.frombuffer(bytearray(stream.getvalue()), dtype=torch.uint8))


def test_all_ranks_raise_the_error_that_matters_most() -> None:
    failures = [Failure.of(0, ValueError("x")), Failure.of(2, CheckpointCorruptError("bad block"))]
    error = worst(failures)
    assert type(error) is CheckpointCorruptError
    assert str(error) == "ranks 0, 2: bad block"
    assert type(worst([*failures, Failure.of(1, FencedError("attempt 2"))])) is FencedError
    assert str(worst([Failure.of(3, OSError("disk"))])) == "rank 3: OSError: disk"


def test_an_error_that_cannot_travel_still_tells() -> None:
    class LocalError(CheckpointError):
        pass

    assert type(Failure.of(0, LocalError("here")).error) is CheckpointError


def test_seeds_of_new_ranks_differ_and_repeat() -> None:
    assert seed_for(3, 10, 4) == seed_for(3, 10, 4)
    assert len({seed_for(rank, 10, 4) for rank in range(4)}) == 4


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("EVERSTEP_")]:
        monkeypatch.delenv(name)
    assert read_environment() == JobEnvironment()
    monkeypatch.setenv("EVERSTEP_ATTEMPT", "3")
    monkeypatch.setenv("EVERSTEP_RESUME_STEP", "")
    monkeypatch.setenv(
        "EVERSTEP_POLICY",
        '{"async": true, "interval": {"steps": 10}, "keepLast": 3, "keepBest": {"metric": "eval", "mode": "max"}}',
    )
    found = read_environment()
    assert found.attempt == 3
    assert found.resume_step is None
    assert found.policy is not None
    assert (found.policy.interval.steps, found.policy.interval.seconds, found.policy.keep_last) == (10, None, 3)
    assert found.policy.keep_best is not None
    assert found.policy.keep_best.mode == "max"


@pytest.mark.parametrize(
    ("name", "value"),
    [("ATTEMPT", "two"), ("POLICY", "{"), ("POLICY", '{"interval": {"steps": 0}}'), ("HEARTBEAT_SECONDS", "-1")],
)
def test_a_bad_variable_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"EVERSTEP_{name}", value)
    with pytest.raises(InvalidOperationError, match=f"(?i){name}"):
        read_environment()
