"""Files laid out here and the library's own are the same format."""

from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from everstep.errors import CheckpointCorruptError, InvalidOperationError
from everstep.weights.layout import NAMES, Layout, Spec, file_name, index_of, parse

SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)


@st.composite
def named_tensors(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    found = {}
    for name in draw(st.lists(st.text("abc.é/_0", min_size=1, max_size=8), unique=True, max_size=6)):
        shape, dtype = draw(SHAPES), draw(st.sampled_from(sorted(NAMES, key=str)))
        count = torch.Size(shape).numel() * dtype.itemsize
        raw = torch.randint(0, 2 if dtype == torch.bool else 256, (count,), dtype=torch.uint8)
        found[name] = raw.view(dtype).view(shape)
    return found


def bytes_of(tensor: torch.Tensor) -> bytes:
    """NaNs compare as what they are."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(
        (value.dtype, value.shape, bytes_of(value)) == (theirs[name].dtype, theirs[name].shape, bytes_of(theirs[name]))
        for name, value in ours.items()
    )


@given(named_tensors())
def test_what_is_laid_out_here_the_library_reads_and_the_other_way_round(tensors: dict[str, torch.Tensor]) -> None:
    layout = Layout(Spec(name, value.dtype, tuple(value.shape)) for name, value in tensors.items())
    buffer = torch.full((layout.size + 3,), 0xAB, dtype=torch.uint8)
    layout.write_header(buffer)
    for name, value in tensors.items():
        layout.place(buffer, name).copy_(value)
    body = buffer[: layout.size].numpy().tobytes()
    assert same(safetensors.torch.load(body), tensors)
    assert same(parse(torch.frombuffer(bytearray(body), dtype=torch.uint8), "here"), tensors)
    theirs = bytearray(safetensors.torch.save(tensors))
    assert same(parse(torch.frombuffer(theirs, dtype=torch.uint8), "here"), tensors)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff" * 64,
        (200).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (60).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'.ljust(60),
    ],
)
def test_another_file_is_refused(body: bytes) -> None:
    with pytest.raises(CheckpointCorruptError, match="here is not a safetensors file"):
        parse(torch.tensor(list(body), dtype=torch.uint8), "here")


def test_a_type_without_a_name_is_refused_by_the_tensors_name() -> None:
    with pytest.raises(InvalidOperationError, match=r"phase: torch\.complex64"):
        Layout([Spec("phase", torch.complex64, (2,))])


def test_the_index_names_the_file_of_each_tensor() -> None:
    files = [[Spec("a", torch.float32, (2, 2))], [Spec("b", torch.bfloat16, (3,)), Spec("c", torch.int64, ())]]
    document = json.loads(index_of(files))
    first, second = file_name(0, 2), file_name(1, 2)
    assert document["weight_map"] == {"a": first, "b": second, "c": second}
    assert document["metadata"] == {"total_size": 16 + 6 + 8}
    assert (first, file_name(0, 1)) == ("model-00001-of-00002.safetensors", "model.safetensors")
