"""Text to integers and back: bytes, characters, a BPE trained on the train split, or GPT-2's BPE.

A tokenizer's name says what it is: `byte`, `char`, `bpe4096` (any size), `gpt2`. Each document is followed by `end`, so that
a model sees where one stops.
"""

import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lowmem import kept_files
from lowmem.data import archives
from lowmem.errors import Failed, Misuse, nearest

LARGEST = 65536  # tokens are stored as uint16
TRAIN_BYTES = 50_000_000  # of text, from the start of the train split, are enough for a BPE of this size
PIECE_BYTES = 4000  # sentencepiece drops longer "sentences", so long lines are cut at spaces for its training


@dataclass(frozen=True)
class Tokenizer:
    """encode: list of texts -> list of 1-D arrays of token ids (uint8 or uint16, little-endian), without `end`.
    decode: ids -> text. end: the ids that follow a document. files: {name: bytes} to keep beside the tokens."""

    name: str
    vocab_size: int
    end: tuple[int, ...]
    encode: Callable[[list[str]], list[np.ndarray]]
    decode: Callable[[Iterable[int]], str]
    files: dict[str, bytes]

    @property
    def dtype(self) -> np.dtype:
        """The smallest integer dtype that holds every token: uint8, or uint16 in little-endian order."""
        return np.dtype("u1") if self.vocab_size <= 256 else np.dtype("<u2")


def check(name: str) -> None:
    """Misuse when no tokenizer has this name."""
    size = re.fullmatch(r"bpe([0-9]+)", str(name))
    if name not in ("byte", "char", "gpt2") and not size:
        raise Misuse(
            f"unknown tokenizer {name!r}{nearest(name, ('byte', 'char', 'gpt2', 'bpe4096'))}; bpe takes any size"
        )
    if size and not 512 <= int(size[1]) <= LARGEST:
        raise Misuse(f"tokenizer {name}: the size must lie between 512 and {LARGEST}")


def make(name: str, train_texts: Callable[[], Iterator[str]], gpt2_raw: Callable[[], Path]) -> Tokenizer:
    """The tokenizer of this name. train_texts() starts the train split's documents over (read for bpe only);
    gpt2_raw() is the folder with GPT-2's vocabulary (asked for gpt2 only)."""
    check(name)
    if name == "byte":
        return byte()
    if name == "char":
        return char("".join(sorted({symbol for text in train_texts() for symbol in set(text)})))
    if name == "gpt2":
        return gpt2(gpt2_file(gpt2_raw()))
    return bpe(name, train_bpe(int(name[3:]), train_texts()))


def load(folder: Path) -> Tokenizer:
    """The tokenizer that a prepared folder was made with."""
    name = kept_files.read_json(folder / "meta.json")["tokenizer"]
    if name == "byte":
        return byte()
    if name == "char":
        return char((folder / "characters.txt").read_bytes().decode("utf-8"))
    if name == "gpt2":
        return gpt2((folder / "tokenizer.json").read_bytes())
    return bpe(name, (folder / "tokenizer.model").read_bytes())


def byte() -> Tokenizer:
    """UTF-8 bytes as they are; a document ends with an empty line."""

    def encode(texts: list[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode("utf-8"), np.uint8) for text in texts]

    def decode(ids: Iterable[int]) -> str:
        return bytes(int(i) for i in ids).decode("utf-8", "replace")

    return Tokenizer("byte", 256, tuple(b"\n\n"), encode, decode, {})


def char(symbols: str) -> Tokenizer:
    """The characters of the train split, in their order; nothing marks the end of a document. For small alphabets."""
    codes = np.array([ord(symbol) for symbol in symbols], "<u4")

    def encode(texts: list[str]) -> list[np.ndarray]:
        encoded = []
        for text in texts:
            points = np.frombuffer(text.encode("utf-32-le"), "<u4")
            ids = np.searchsorted(codes, points).clip(max=len(codes) - 1)
            unknown = np.flatnonzero(codes[ids] != points)
            if len(unknown):
                symbol = chr(points[unknown[0]])
                raise Failed(f"the character {symbol!r} does not occur in the training text; use the tokenizer byte")
            encoded.append(ids)
        return encoded

    def decode(ids: Iterable[int]) -> str:
        return "".join(symbols[int(i)] for i in ids)

    return Tokenizer("char", len(symbols), (), encode, decode, {"characters.txt": symbols.encode("utf-8")})


def train_bpe(size: int, texts: Iterator[str]) -> bytes:
    """A sentencepiece BPE model (Sennrich et al. 2016, Kudo and Richardson 2018) with byte fallback: every text has a
    token sequence that gives it back. One thread and no sampling: the same texts give the same bytes."""
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=training_lines(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=size,
            byte_fallback=True,
            character_coverage=0.9995,  # rarer characters are spelled in bytes
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            split_digits=True,
            unk_id=0,
            eos_id=1,
            bos_id=-1,
            pad_id=-1,
            input_sentence_size=0,
            shuffle_input_sentence=False,
            max_sentence_length=4 * PIECE_BYTES,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        message = " ".join(str(error).split())
        raise Misuse(f"cannot train bpe{size} on this text ({message[-120:]}); choose a smaller size") from error
    return model.getvalue()


def training_lines(texts: Iterator[str]) -> Iterator[str]:
    """Lines of at most PIECE_BYTES characters, until TRAIN_BYTES characters are read."""
    read = 0
    for text in texts:
        for line in text.split("\n"):
            yield from (piece for piece in re.findall(rf".{{1,{PIECE_BYTES}}}(?:(?= )|$)|.{{1,{PIECE_BYTES}}}", line))
        read += len(text)
        if read >= TRAIN_BYTES:
            return


def bpe(name: str, model: bytes) -> Tokenizer:
    """A tokenizer around a trained model. Line ends are no part of its pieces, so lines are encoded one by one."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    newline = processor.piece_to_id("<0x0A>")

    def encode(texts: list[str]) -> list[np.ndarray]:
        encoded = []
        for text in texts:
            ids: list[int] = []
            for line in processor.encode(text.split("\n"), num_threads=1):
                ids += line
                ids.append(newline)
            encoded.append(np.array(ids[:-1], "<u2"))
        return encoded

    def decode(ids: Iterable[int]) -> str:
        return processor.decode([int(i) for i in ids])

    return Tokenizer(name, processor.vocab_size(), (processor.eos_id(),), encode, decode, {"tokenizer.model": model})


def gpt2_file(raw: Path) -> bytes:
    """GPT-2's encoder.json and vocab.bpe as one tokenizer.json."""
    from_package = need_tokenizers()
    [vocabulary] = archives.read(raw, "*/encoder.json").values()
    [merges] = archives.read(raw, "*/vocab.bpe").values()
    pairs = [tuple(line.split(" ")) for line in merges.decode("utf-8").split("\n")[1:] if line]  # first line: version
    model = from_package.models.BPE(vocab=json.loads(vocabulary), merges=pairs)
    tokenizer = from_package.Tokenizer(model)
    tokenizer.pre_tokenizer = from_package.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = from_package.decoders.ByteLevel()
    return tokenizer.to_str().encode("utf-8")


def gpt2(file: bytes) -> Tokenizer:
    """GPT-2's byte-level BPE (Radford et al. 2019), 50,257 tokens; a document ends with <|endoftext|>."""
    tokenizer = need_tokenizers().Tokenizer.from_str(file.decode("utf-8"))

    def encode(texts: list[str]) -> list[np.ndarray]:
        return [np.array(found.ids, "<u2") for found in tokenizer.encode_batch(texts, add_special_tokens=False)]

    def decode(ids: Iterable[int]) -> str:
        return tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)

    end = tokenizer.token_to_id("<|endoftext|>")
    return Tokenizer("gpt2", tokenizer.get_vocab_size(), (end,), encode, decode, {"tokenizer.json": file})


def need_tokenizers():
    """The package tokenizers; Failed, with how to install it, where it is missing."""
    try:
        import tokenizers
    except ImportError as error:
        raise Failed("the gpt2 tokenizer needs the tokenizers package; pip install 'lowmem[hub]'") from error
    return tokenizers
