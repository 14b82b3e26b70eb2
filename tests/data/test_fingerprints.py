"""Contents are told apart by what they are, not by where they lie or in which pieces."""

from __future__ import annotations

import os
import shutil
from itertools import pairwise

import pytest
from datasets import Dataset, concatenate_datasets
from transformers import AutoTokenizer

from retromae_hf import tokenize_passages
from retromae_hf.data.disk import read_json
from retromae_hf.data.documents import fingerprint_of_files, fingerprint_of_rows, fingerprint_of_tokenizer
from retromae_hf.data.tokenizers import train_wordpiece
from retromae_hf.training.training_rows import shorten


def test_rows_are_the_same_in_any_pieces(texts):
    rows = Dataset.from_dict({"text": texts * 20, "number": [[float(n)] * (n % 3) for n in range(20 * len(texts))]})
    cuts = [0, 7, 1000, 1900, len(rows)]
    pieces = [rows.select(range(start, stop)) for start, stop in pairwise(cuts)]
    assert fingerprint_of_rows(concatenate_datasets(pieces)) == fingerprint_of_rows(rows)
    assert fingerprint_of_rows(rows.select(range(len(rows)))) == fingerprint_of_rows(rows)
    assert fingerprint_of_rows(rows.select([*range(len(rows))[::-1]])) != fingerprint_of_rows(rows)


def test_one_other_character_is_other_rows(texts):
    changed = [*texts[:-1], texts[-1].replace("The", "the")]
    one, other = (Dataset.from_dict({"text": rows}) for rows in (texts, changed))
    assert fingerprint_of_rows(one) != fingerprint_of_rows(other)


def test_files_are_told_by_name_and_size_wherever_they_lie(tmp_path):
    (tmp_path / "a" / "inner").mkdir(parents=True)
    (tmp_path / "a" / "inner" / "1.txt").write_text("one")
    (tmp_path / "a" / ".hidden").write_text("no data")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    os.utime(tmp_path / "b" / "inner" / "1.txt", (1, 1))
    (tmp_path / "b" / ".hidden").unlink()
    assert fingerprint_of_files(f"{tmp_path}/a") == fingerprint_of_files(f"{tmp_path}/b")
    (tmp_path / "b" / "inner" / "1.txt").write_text("more")
    assert fingerprint_of_files(f"{tmp_path}/a") != fingerprint_of_files(f"{tmp_path}/b")


@pytest.fixture
def elsewhere(tokenizer, tmp_path):
    """The same tokenizer from another folder, which has truncated and padded by now."""
    tokenizer.save_pretrained(tmp_path / "elsewhere")
    other = AutoTokenizer.from_pretrained(tmp_path / "elsewhere")
    other("one two three", truncation=True, max_length=4, padding="max_length")
    return other


def test_a_tokenizer_is_the_same_from_any_folder(tokenizer, elsewhere, texts):
    assert fingerprint_of_tokenizer(elsewhere) == fingerprint_of_tokenizer(tokenizer)
    assert fingerprint_of_tokenizer(train_wordpiece(texts, 190, 32)) != fingerprint_of_tokenizer(tokenizer)


def test_what_was_tokenised_is_not_tokenised_again(tokenizer, elsewhere, texts, tmp_path):
    Dataset.from_dict({"query": texts, "text": texts}).save_to_disk(tmp_path / "rows")
    rows = Dataset.load_from_disk(tmp_path / "rows")
    lengths, prompts = {"query": 8, "text": 16}, {"query": "", "text": ""}

    def files(one, pairs=False, max_length=32):
        passages = tokenize_passages(rows.select_columns("text"), one, max_length, pairs=pairs)
        return passages.cache_files, shorten(rows, one, lengths, prompts).cache_files

    assert files(elsewhere) == files(tokenizer)
    assert files(elsewhere, pairs=True) == files(tokenizer, pairs=True)
    assert files(tokenizer, pairs=True)[0] != files(tokenizer)[0] != files(tokenizer, max_length=16)[0]


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"7", b"\xff", b"[" * 100_000, b'{"a":' * 100_000])
def test_a_file_of_ours_that_holds_no_object_holds_nothing(content, tmp_path):
    (tmp_path / "ours.json").write_bytes(content)
    assert read_json(tmp_path / "ours.json") is None
    assert read_json(tmp_path / "absent.json") is None
