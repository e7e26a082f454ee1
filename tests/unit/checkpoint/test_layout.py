"""How many files a rank writes, and how large they are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint.metadata import MetadataIndex

from everstep.catalog.store import s3_objects
from everstep.checkpoint.saving.layout import CONNECTIONS, FILE_BYTES, MOST_FILES, Piece, arrange, file_bytes
from everstep.transfer import uploader

MIB = 1 << 20


def pieces(rooms: list[int]) -> list[Piece]:
    return [Piece(MetadataIndex(f"t{number}"), room, None) for number, room in enumerate(rooms)]


@pytest.mark.parametrize(
    ("mib", "files"), [(1, 1), (31, 1), (32, 2), (128, 8), (800, 16), (6 << 10, 64), (9 << 10, 64)]
)
def test_as_many_files_as_keep_all_connections_busy(mib: int, files: int) -> None:
    assert len(arrange(pieces([mib * MIB >> 8] * 256), 0)) == files


@given(st.lists(st.integers(0, 300 * MIB), min_size=1, max_size=60))
def test_items_lie_in_files_of_about_their_share(rooms: list[int]) -> None:
    share = file_bytes(sum(rooms))
    found = arrange(pieces(rooms), 7)
    assert [file.name for file in found] == [f"__7_{number}.distcp" for number in range(len(found))]
    assert sorted(slot.number for file in found for slot in file.slots) == list(range(len(rooms)))
    for file in found:
        assert file.size <= share + file.slots[-1].room // 2 or len([slot for slot in file.slots if slot.room]) == 1
    assert len(found) <= 2 * MOST_FILES + 1
    assert share <= max(FILE_BYTES, -(-sum(rooms) // MOST_FILES))


def test_a_file_is_one_request_and_there_is_a_thread_for_each_connection() -> None:
    assert FILE_BYTES + 64 * MIB // 2 <= s3_objects.WHOLE  # with an item of 64 MiB as the last
    assert uploader.OBJECTS % CONNECTIONS == 0
