from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from everstep.errors import InvalidOperationError
from everstep.train.data import GlobalBatches, TextDataset, encode_bytes
from everstep.train.schedule import factor
from everstep.train.text import Document, is_held_out, read_documents

TEXT = [Document("a", bytes(range(256)) * 8)]


def batches(rank: int = 0, ranks: int = 1, seed: int = 1) -> GlobalBatches:
    return GlobalBatches(TextDataset.of(TEXT, 16), 12, seed, rank, ranks)


def test_samples_do_not_depend_on_the_number_of_ranks() -> None:
    alone = batches()
    gangs = {ranks: [batches(rank, ranks) for rank in range(ranks)] for ranks in (2, 3, 4)}
    for _ in range(30):  # several epochs
        wanted = next(alone)
        for gang in gangs.values():
            assert torch.equal(torch.cat([next(member) for member in gang]), wanted)


def test_a_position_resumes_on_another_number_of_ranks() -> None:
    alone = batches()
    for _ in range(14):
        next(alone)
    state = alone.get_state()
    assert state["position"] == 14 * 12
    assert state["epoch"] == 14 * 12 // len(alone.dataset)
    pair = [batches(rank, 2) for rank in range(2)]
    for member in pair:
        member.set_state(state)
    assert torch.equal(torch.cat([next(member) for member in pair]), next(alone))


def test_each_epoch_has_every_sample_once() -> None:
    data = GlobalBatches(TextDataset.of(TEXT, 16), 1, 5)
    size = len(data.dataset)
    order = [[int(data._order.index_at(e * size + p)) for p in range(size)] for e in range(2)]
    assert sorted(order[0]) == sorted(order[1]) == list(range(size))
    assert order[0] != order[1]


def test_a_foreign_position_is_refused() -> None:
    state = batches().get_state()
    with pytest.raises(InvalidOperationError, match="seed 1"):
        batches(seed=2).set_state(state)
    with pytest.raises(InvalidOperationError, match="another text"):
        GlobalBatches(TextDataset.of(TEXT, 32), 12, 1).set_state(state)
    with pytest.raises(InvalidOperationError, match="12 samples do not divide among 5 ranks"):
        batches(0, 5)


def test_bytes_are_byt5s_tokens() -> None:
    from transformers import ByT5Tokenizer

    text = "def f(ä): return '€'  # ok"
    assert encode_bytes(text.encode()).tolist() == ByT5Tokenizer()(text).input_ids


def test_text_from_files(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in ("one", "two")) + "\n")
    (tmp_path / "a.txt").write_text("zero")
    (tmp_path / "c.bin").write_text("ignored")
    found = read_documents(str(tmp_path))
    assert [(d.name, d.text) for d in found] == [("a.txt", b"zero"), ("b.jsonl:0", b"one"), ("b.jsonl:1", b"two")]
    assert read_documents(str(tmp_path / "a.txt"))[0].text == b"zero"
    assert [d.name for d in read_documents(f"file://{tmp_path}/b.jsonl")] == ["b.jsonl:0", "b.jsonl:1"]
    with pytest.raises(InvalidOperationError, match="line 1: no field 'body'"):
        read_documents(str(tmp_path), text_field="body")
    with pytest.raises(InvalidOperationError, match="does not exist"):
        read_documents(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidOperationError, match="no text"):
        read_documents(str(tmp_path / "empty"))


def test_a_text_that_is_larger_than_what_is_learnt_from_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("everstep.train.text.PIECE", 7)
    (tmp_path / "a.txt").write_text("one two three " * 1000)
    found = read_documents(str(tmp_path / "a.txt"), max_bytes=20)
    assert [d.text for d in found] == [b"one two three one tw"]
    lines = [json.dumps({"text": f"line {i}", "n": i}) for i in range(100)]
    (tmp_path / "b.jsonl").write_text("\r\n".join(lines))
    found = read_documents(str(tmp_path / "b.jsonl"), max_bytes=15)
    assert [(d.name, d.text) for d in found] == [
        ("b.jsonl:0", b"line 0"), ("b.jsonl:1", b"line 1"), ("b.jsonl:2", b"lin"),
    ]  # fmt: skip
    assert [d.text for d in read_documents(str(tmp_path / "b.jsonl"))] == [f"line {i}".encode() for i in range(100)]


def test_records_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "\\ud800 odd"}\n\n{"text": null}\n')
    with pytest.raises(InvalidOperationError, match=r"a\.jsonl, line 3: 'text' is None, not a string"):
        read_documents(str(path))
    path.write_text('{"text": "\\ud800 odd"}\n')
    assert read_documents(str(path))[0].text == b"? odd"


def test_the_standard_library_is_text_everywhere() -> None:
    documents = read_documents("stdlib", max_bytes=1 << 20)
    assert sum(len(document.text) for document in documents) > 500_000
    assert not any("site-packages" in document.name for document in documents)
    held = [document for document in documents if is_held_out(document.name, 0.2)]
    assert 0 < len(held) < len(documents)


def test_the_learning_rate_is_a_function_of_the_step() -> None:
    rates = [factor(step, 100, 10, 0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert rates[99] == pytest.approx(0.1)
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[10:]))
    assert factor(0, 1, 0, 0.5) == 1.0
    assert np.isfinite([factor(s, 2, 5, 0.0) for s in range(9)]).all()
