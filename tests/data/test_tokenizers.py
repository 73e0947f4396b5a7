"""Tokenizers: every text comes back, the same text gives the same tokens."""

import json

import numpy as np
import prepared_folders
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from word_corpus import WORDS, corpus

from lowmem.data import tokenizers
from lowmem.errors import Failed, Misuse

LOWER_BLOCK = "\u2581"  # sentencepiece's own sign for a space: the one character that does not come back


@pytest.fixture(scope="module")
def bpe():
    return tokenizers.make("bpe600", lambda: iter(corpus()), None)


def gpt2_folder(folder):
    """GPT-2's file format with a small vocabulary: 256 bytes, three merges, the end token."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in shown}
    letters |= {byte: chr(256 + i) for i, byte in enumerate(b for b in range(256) if b not in shown)}
    merges = ["t h", "th e", "Ġ the"]
    vocabulary = [*letters.values(), "th", "the", "Ġthe", "<|endoftext|>"]
    (folder / "encoder.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (folder / "vocab.bpe").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    return folder


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=LOWER_BLOCK), max_size=200)


@settings(max_examples=200, deadline=None)
@given(text=texts)
def test_bytes_give_every_text_back(text):
    tokenizer = tokenizers.byte()
    [ids] = tokenizer.encode([text])
    assert ids.dtype == np.uint8 and tokenizer.decode(ids) == text


@settings(max_examples=300, deadline=None)
@given(text=texts | st.lists(st.sampled_from([*WORDS, " ", "  ", "\n", "\t", "\r\n", "é", "日本", "\0"])).map(" ".join))
def test_a_bpe_gives_every_text_back(bpe, text):
    [ids] = bpe.encode([text])
    assert bpe.decode(ids) == text
    assert ids.dtype == np.dtype("<u2") and (ids < bpe.vocab_size).all()


@settings(max_examples=200, deadline=None)
@given(text=texts)
def test_gpt2s_bpe_gives_every_text_back(gpt2, text):
    [ids] = gpt2.encode([text])
    assert gpt2.decode(ids) == text


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return tokenizers.make("gpt2", None, lambda: gpt2_folder(tmp_path_factory.mktemp("gpt2")))


def test_gpt2s_merges_are_applied_in_their_order(gpt2):
    [ids] = gpt2.encode(["the the"])
    assert [gpt2.decode([i]) for i in ids] == ["the", " the"]
    assert gpt2.end == (259,) and gpt2.vocab_size == 260


def test_a_bpe_has_the_size_in_its_name_and_is_shorter_than_bytes(bpe):
    [ids] = bpe.encode([corpus()[0]])
    assert bpe.vocab_size == 600
    assert len(ids) < 0.6 * len(corpus()[0])


def test_training_twice_gives_the_same_bytes(bpe):
    assert tokenizers.train_bpe(600, iter(corpus())) == bpe.files["tokenizer.model"]


def test_line_ends_are_tokens_of_their_own(bpe):
    one, two = bpe.encode(["strong\n", "strong"])
    assert list(one[:-1]) == list(two) and bpe.decode(one[-1:]) == "\n"


def test_the_end_of_a_document_is_never_a_token_of_its_text(bpe, gpt2):
    for tokenizer in (bpe, gpt2):
        [ids] = tokenizer.encode(["</s> <unk> eos"])
        assert not set(tokenizer.end) & set(ids.tolist()), tokenizer.name


def test_long_lines_are_cut_at_spaces_for_training_and_lose_nothing():
    line = " ".join(["word"] * 5000) + "x" * 9000
    pieces = list(tokenizers.training_lines(iter([line + "\n\nlast"])))
    assert "".join(pieces) == line + "last"
    assert max(map(len, pieces)) <= tokenizers.PIECE_BYTES


def test_training_reads_no_more_text_than_its_limit(monkeypatch):
    monkeypatch.setattr(tokenizers, "TRAIN_BYTES", 100)
    seen = []
    list(tokenizers.training_lines(seen.append(i) or "x" * 60 for i in range(10)))
    assert seen == [0, 1]


@pytest.mark.parametrize("name", ["bytes", "bpe", "bpe10", "bpe100000", "bpe４０９６", "gpt3", ""])
def test_an_unknown_name_or_size_is_misuse(name):
    with pytest.raises(Misuse):
        tokenizers.check(name)


def test_a_size_the_text_cannot_fill_is_misuse_in_one_line():
    with pytest.raises(Misuse, match="choose a smaller size") as failure:
        tokenizers.train_bpe(20000, iter(["too little text"]))
    assert "\n" not in str(failure.value)


def test_characters_come_back_and_are_numbered_in_their_order():
    made = tokenizers.make("char", lambda: iter(["banana\n", "cab"]), None)
    [ids] = made.encode(["cab\nban"])
    assert made.vocab_size == 5 and made.end == () and ids.tolist() == [3, 1, 2, 0, 2, 1, 4]
    assert made.decode(ids) == "cab\nban"


def test_a_character_that_training_never_saw_is_an_error():
    made = tokenizers.make("char", lambda: iter(["abc"]), None)
    with pytest.raises(Failed, match="'z' does not occur"):
        made.encode(["abz"])


def test_characters_are_loaded_from_the_prepared_folder(tmp_path):
    made = tokenizers.make("char", lambda: iter(["é ß\r\n"]), None)
    for name, data in made.files.items():
        (tmp_path / name).write_bytes(data)
    prepared_folders.seal(tmp_path, tokenizer="char")
    assert tokenizers.load(tmp_path).decode(made.encode(["ß\r\né"])[0]) == "ß\r\né"
