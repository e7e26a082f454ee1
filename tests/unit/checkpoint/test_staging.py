"""Layout and staging: what lies in the buffers is what stock readers expect, byte for byte, summed as it lies."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint.metadata import MetadataIndex

from everstep.catalog.sums import block_sums
from everstep.checkpoint.saving.envelope import envelope
from everstep.checkpoint.saving.layout import PACKED, PAGE, FileLayout, Piece, arrange
from everstep.checkpoint.saving.staging import Buffers, Source, StagedFile, Staging
from everstep.errors import InvalidOperationError
from everstep.transfer import SharedBuffer

TYPES = (torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn)


def pieces_of(sources: dict[MetadataIndex, Source]) -> list[Piece]:
    found = []
    for index, source in sources.items():
        if isinstance(source, io.BytesIO):
            found.append(Piece(index, len(source.getbuffer()) + 100, None))
        else:
            around = envelope(tuple(source.shape), source.dtype)
            found.append(Piece(index, around.length, around))
    return found


def stage(sources: dict[MetadataIndex, Source], buffers: Buffers, most: int, late: Any) -> list[StagedFile]:
    layouts = arrange(pieces_of(sources), 3, most)
    staging = Staging(layouts, buffers.fit(layouts), list(sources.values()), late)
    staging.take()
    return staging.finish()


def value(data: Any) -> io.BytesIO:
    stream = io.BytesIO()
    torch.save(data, stream)
    return stream


def check(files: list[StagedFile], sources: dict[MetadataIndex, Source]) -> None:
    seen = set()
    for file in files:
        body = bytes(file.segment.view)
        assert len(body) == file.layout.size
        assert block_sums(body) == file.sums
        end = 0
        for slot in file.layout.slots:
            assert not any(body[end : slot.offset]), "zeros between archives"
            end = slot.offset + slot.room
            source = sources[slot.index]
            archive = body[slot.offset :][: file.archives.get(slot.index, slot.room)]
            if isinstance(source, io.BytesIO):
                assert archive == source.getvalue()
            else:
                assert torch.equal(torch.load(io.BytesIO(archive), weights_only=True), source)
                if source.nbytes >= PACKED:
                    assert slot.payload % PAGE == 0
                raw = source.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
                assert body[slot.payload :][: source.nbytes] == raw
            seen.add(slot.index)
    assert seen == sources.keys()


@settings(max_examples=30, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 40), max_size=3), max_size=12),
    large=st.lists(st.integers(PACKED - 8, 700_000), max_size=3),
    values=st.lists(st.binary(max_size=900), max_size=3),
    late=st.sets(st.integers(0, 14)),
    most=st.sampled_from([300_000, 1 << 30]),
)
def test_any_state_lies_as_stock_readers_expect(
    shapes: list[list[int]], large: list[int], values: list[bytes], late: set[int], most: int
) -> None:
    torch.manual_seed(0)
    sources: dict[MetadataIndex, Source] = {}
    for number, shape in enumerate(shapes):
        tensor = (torch.randn(shape) * 50).abs().to(TYPES[number % 6])
        sources[MetadataIndex(f"t{number}")] = tensor.t() if tensor.dim() == 2 else tensor
    for number, size in enumerate(large):
        sources[MetadataIndex(f"large{number}")] = torch.randint(0, 255, (size,), dtype=torch.uint8)
    tensors = {id(tensor): number for number, tensor in enumerate(sources.values())}
    for number, data in enumerate(values):
        sources[MetadataIndex(f"v{number}")] = value(data)
    buffers = Buffers()
    for _ in range(2):  # over what the first has left behind
        check(stage(sources, buffers, most, lambda tensor: tensors[id(tensor)] in late), sources)
    buffers.close()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (7, 5), (300, 301)])
def test_an_envelope_is_torchs_own(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensor = torch.ones(shape).to(dtype)
    found = envelope(shape, dtype)
    payload = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
    assert found.payload == len(payload)
    stream = io.BytesIO()
    torch.save(tensor, stream)
    assert found.length == len(stream.getvalue())
    loaded = torch.load(io.BytesIO(found.head + payload + found.tail), weights_only=True)
    assert loaded.dtype == dtype
    assert torch.equal(
        loaded.float() if dtype.itemsize == 1 else loaded, tensor.float() if dtype.itemsize == 1 else tensor
    )


def test_buffers_are_reused_and_given_back() -> None:
    buffers = Buffers()

    def fit(*sizes: int) -> list[str]:
        sources: dict[MetadataIndex, Source] = {
            MetadataIndex(f"t{i}"): torch.full((size,), i, dtype=torch.uint8) for i, size in enumerate(sizes)
        }
        files = stage(sources, buffers, 1 << 20, lambda _: True)
        check(files, sources)
        return [file.segment.buffer.id for file in files]

    first = fit(900_000, 900_001)
    assert fit(900_002, 900_010) == first
    kept = buffers.bytes
    assert fit(900_000) == first[:1]
    assert buffers.bytes == kept // 2
    assert fit(40 << 20) != first[:1]
    assert buffers.bytes == (40 << 20) + (1 << 18)
    fit(100)
    assert buffers.bytes == 1 << 18
    buffers.close()
    assert buffers.bytes == 0


def test_memory_that_is_refused_costs_one_save() -> None:
    """What was given back to make room is not taken for a buffer by the next one."""
    refused: list[int] = []

    def make(_: FileLayout, size: int) -> SharedBuffer:
        if size > 4 << 20 and not refused:
            refused.append(size)
            raise OSError("cannot allocate memory")
        return SharedBuffer(size)

    buffers = Buffers(make)

    def fit(size: int) -> None:
        sources: dict[MetadataIndex, Source] = {MetadataIndex("t"): torch.full((size,), 7, dtype=torch.uint8)}
        check(stage(sources, buffers, 1 << 20, lambda _: True), sources)

    fit(900_000)
    with pytest.raises(OSError, match="cannot allocate"):
        fit(20 << 20)
    assert buffers.bytes == 0
    fit(900_000)
    fit(20 << 20)
    buffers.close()


def test_a_tensor_that_changed_before_it_was_copied_is_told_of() -> None:
    tensor = torch.zeros(100)
    sources: dict[MetadataIndex, Source] = {MetadataIndex("model.weight"): tensor}
    layouts = arrange(pieces_of(sources), 0)
    staging = Staging(layouts, Buffers().fit(layouts), list(sources.values()), lambda _: True)
    staging.take()
    tensor[5] += 1
    with pytest.raises(InvalidOperationError, match=r"model\.weight was changed after its step had ended"):
        staging.finish()
