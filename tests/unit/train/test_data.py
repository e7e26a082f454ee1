from __future__ import annotations

import itertools
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from everstep.errors import InvalidOperationError
from everstep.train.config import read_config
from everstep.train.data import TextDataset, encode_bytes
from everstep.train.recipe import batches
from everstep.train.schedule import factor
from everstep.train.text import Document, is_held_out, read_documents

TEXT = [Document("a", bytes(range(256)) * 8)]


def test_text_that_makes_no_sample_is_named() -> None:
    with pytest.raises(InvalidOperationError, match=r"data\.sequence: 4096: the text has 2049 tokens"):
        TextDataset.of(TEXT, 4096)


def test_a_fingerprint_is_that_of_text_and_sequence() -> None:
    found = {
        TextDataset.of(text, length).fingerprint() for text in (TEXT, [Document("b", b"x" * 99)]) for length in (8, 9)
    }
    assert len(found) == 4
    assert TextDataset.of(TEXT, 8).fingerprint() in found


def test_a_text_of_fewer_samples_than_a_step_takes_is_refused() -> None:
    config = read_config(["--global_batch", "300"])
    with pytest.raises(InvalidOperationError, match="global_batch: 300 samples a step, but the text has only 256 of"):
        batches(config, TextDataset.of(TEXT, 8))


def test_folders_are_read_in_the_order_of_their_paths_and_of_some_nothing_is_taken(tmp_path: Path) -> None:
    names = ["a/z.txt", "a-b.txt", "a.txt", "a/b/c.txt"]
    for name in [*names, "tests/a.txt", "a/__pycache__/b.txt", "site-packages/c/d.txt"]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    assert [d.text.decode() for d in read_documents(str(tmp_path))] == sorted(names, key=lambda name: name.split("/"))


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
    monkeypatch.setattr("everstep.data.lines.PIECE", 7)
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


@pytest.fixture
def somebody() -> Iterator[Path]:
    """A folder of root's, for a process that is not root."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "secret.txt").write_text("secret")
        (folder / "secret.txt").chmod(0)
        folder.chmod(0o755)
        before = os.geteuid()
        if before == 0:
            os.seteuid(65534)
        try:
            yield folder
        finally:
            os.seteuid(before)


def test_text_that_may_not_be_read_is_named(somebody: Path) -> None:
    with pytest.raises(
        InvalidOperationError, match=r"data\.source: .*/secret\.txt cannot be read: .*Permission denied"
    ):
        read_documents(str(somebody))


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
