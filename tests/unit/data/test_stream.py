from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from everstep.data import Lines, StreamBatches
from everstep.errors import InvalidOperationError


@dataclass(frozen=True)
class Shards:
    """Records are numbers; a place is how many were read."""

    sizes: tuple[int, ...]

    @property
    def shards(self) -> list[str]:
        return [f"shard-{number}" for number in range(len(self.sizes))]

    def read(self, shard: str, at: int) -> Iterator[tuple[int, int]]:
        number = int(shard.removeprefix("shard-"))
        for index in range(at, self.sizes[number]):
            yield number * 1000 + index, index + 1

    def all(self) -> list[int]:
        return [number * 1000 + index for number, size in enumerate(self.sizes) for index in range(size)]


def gang_of(ranks: int, source: Any, batch: int, state: Any = None, **more: Any) -> list[StreamBatches]:
    made = [StreamBatches(source, batch, seed=3, rank=rank, world_size=ranks, **more) for rank in range(ranks)]
    for member in made:
        if state is not None:
            member.set_state(state)
    return made


def step(gang: list[StreamBatches]) -> list[int]:
    return [int(number) for member in gang for number in next(member)]


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any),
    interleave=st.integers(1, 4),
    window=st.integers(1, 8),
    legs=st.lists(st.tuples(st.sampled_from([1, 2, 3, 6]), st.integers(0, 5)), max_size=5),
)
def test_any_split_over_ranks_and_restarts_is_one_order(
    sizes: list[int], interleave: int, window: int, legs: list[tuple[int, int]]
) -> None:
    source = Shards(tuple(sizes))
    options = {"interleave": interleave, "window": window}
    state = None
    seen: list[int] = []
    for ranks, steps in legs:
        members = gang_of(ranks, source, 6, state, **options)
        for _ in range(steps):
            seen += step(members)
        states = [member.get_state() for member in members]
        assert all(each == states[0] for each in states)
        state = states[0]
        assert members[0].position == len(seen)
    assert seen == step(gang_of(1, source, max(1, len(seen)), **options))[: len(seen)]
    samples = sum(sizes)
    for begin in range(0, len(seen) // samples * samples, samples):
        assert sorted(seen[begin : begin + samples]) == source.all()


def test_windows_and_open_shards_mix_and_epochs_differ() -> None:
    source = Shards((10, 10, 10, 10))
    in_order = StreamBatches(source, 40, shuffle=False, interleave=1)
    assert next(in_order).tolist() == source.all()
    interleaved = StreamBatches(source, 40, shuffle=False, interleave=2)
    assert next(interleaved).tolist()[:6] == [0, 1000, 1, 1001, 2, 1002]
    mixed = StreamBatches(source, 40, seed=1, interleave=4, window=40)
    first, second = next(mixed).tolist(), next(mixed).tolist()
    assert sorted(first) == sorted(second) == source.all()
    assert first != second
    assert len({number // 1000 for number in first[:8]}) > 1


@pytest.mark.parametrize(
    "workers",
    [
        pytest.param(1, marks=pytest.mark.slow),
        pytest.param(2, marks=pytest.mark.slow),
        pytest.param(3, marks=pytest.mark.slow),
    ],
)
def test_workers_change_nothing(workers: int) -> None:
    source = Shards((7, 3, 0, 11))
    options: dict[str, Any] = {"seed": 2, "interleave": 2, "window": 5, "decode": drawn}
    alone = StreamBatches(source, 4, **options)
    wanted = [next(alone) for _ in range(14)]
    ahead = StreamBatches(source, 4, workers=workers, prefetch=3, **options)
    for batch in wanted[:6]:
        assert torch.equal(next(ahead), batch)
    state = ahead.get_state()
    assert state["cursor"]["position"] == 24
    ahead.close()
    again = StreamBatches(source, 4, workers=2, **options)
    again.set_state(state)
    for batch in wanted[6:]:
        assert torch.equal(next(again), batch)
    again.close()


def drawn(record: int) -> torch.Tensor:
    return torch.tensor([record, torch.rand(()).item()], dtype=torch.float64)


def test_a_resume_reads_no_more_than_a_window_again() -> None:
    class Counted(Shards):
        reads: ClassVar[list[int]] = []

        def read(self, shard: str, at: int) -> Iterator[tuple[int, int]]:
            for record in super().read(shard, at):
                self.reads.append(record[0])
                yield record

    data = StreamBatches(Counted((1000, 1000)), 10, window=20)
    for _ in range(95):
        next(data)
    again = StreamBatches(Counted((1000, 1000)), 10, window=20)
    again.set_state(data.get_state())
    Counted.reads.clear()
    assert torch.equal(next(again), next(data))
    assert len(Counted.reads) <= 2 * 20 + 10


def test_lines_are_records_with_their_offsets(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.jsonl" for name in "ab"]
    paths[0].write_bytes(b'{"n": 0}\n\n{"n": 1}\r\n{"n": 2}')
    paths[1].write_bytes(b'{"n": 3}\n{"n": 4}\n')
    lines = Lines(paths)
    assert list(lines.read(str(paths[0]), 0)) == [(b'{"n": 0}', 9), (b'{"n": 1}', 20), (b'{"n": 2}', 28)]
    for _, end in list(lines.read(str(paths[0]), 0)):
        assert list(lines.read(str(paths[0]), end)) == [e for e in lines.read(str(paths[0]), 0) if e[1] > end]
    data = StreamBatches(lines, 5, decode=lambda line: json.loads(line)["n"])
    assert sorted(next(data).tolist()) == [0, 1, 2, 3, 4]
    state = data.get_state()
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in paths:
        (moved / path.name).write_bytes(path.read_bytes())
    elsewhere = StreamBatches(
        Lines([moved / path.name for path in paths]), 5, decode=lambda line: json.loads(line)["n"]
    )
    elsewhere.set_state(state)
    assert torch.equal(next(elsewhere), next(data))
    paths[1].write_bytes(b'{"n": 3}\n')
    with pytest.raises(InvalidOperationError, match="fingerprint was"):
        StreamBatches(Lines(paths), 5).set_state(state)


def test_lines_longer_than_what_is_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("everstep.data.lines.PIECE", 3)
    path = tmp_path / "a"
    path.write_bytes(b"one\ntwo three\n\nfour")
    assert [line for line, _ in Lines([path]).read(str(path), 0)] == [b"one", b"two three", b"four"]


def test_what_cannot_work_is_refused_and_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with pytest.raises(InvalidOperationError, match=r"a\.jsonl: No such file"):
        StreamBatches(Lines([path]), 1)
    path.write_text("\n")
    with pytest.raises(InvalidOperationError, match="named more than once"):
        Lines([path, path])
    with pytest.raises(InvalidOperationError, match="no record in any of 1 shards"):
        next(StreamBatches(Lines([path]), 1))
    with pytest.raises(InvalidOperationError, match="it has no shards"):
        StreamBatches(Lines([]), 1)
    with pytest.raises(InvalidOperationError, match="window=0"):
        StreamBatches(Shards((1,)), 1, window=0)
    path.write_text("{\n")
    with pytest.raises(json.JSONDecodeError) as caught:
        next(StreamBatches(Lines([path]), 1, decode=json.loads))
    assert "a.jsonl: the record before 2" in "".join(caught.value.__notes__)
    data = StreamBatches(Lines([path]), 1)
    path.unlink()
    with pytest.raises(InvalidOperationError, match=r"a\.jsonl is gone"):
        next(data)


def test_shards_that_have_shrunk_are_noticed() -> None:
    data = StreamBatches(Shards((8,)), 6, window=8)
    next(data)
    again = StreamBatches(Shards((4,)), 6, window=8)
    again.set_state(data.get_state())
    with pytest.raises(InvalidOperationError, match="fewer records than there were"):
        next(again)


def test_changed_shards_are_refused_or_begun_anew() -> None:
    data = StreamBatches(Shards((4, 4)), 3)
    next(data)
    state = data.get_state()
    with pytest.raises(InvalidOperationError, match="shards was 2 and is 3"):
        StreamBatches(Shards((4, 4, 4)), 3).set_state(state)
    grown = StreamBatches(Shards((4, 4, 4)), 3, on_change="warn")
    grown.set_state(state)
    assert (grown.position, grown.epoch) == (3, 1)
    assert sorted(int(n) for _ in range(4) for n in next(grown)) == Shards((4, 4, 4)).all()
