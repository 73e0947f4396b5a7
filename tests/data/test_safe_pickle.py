"""Pickles that would touch memory, change classes or never end: each is refused in one line, in a process that lives on."""

import pickle
import random
import re

import numpy as np
import pytest
from campaign_counts import hold

from lowmem.data import safe_pickle
from lowmem.errors import Failed


def calls(function: str, *arguments: bytes) -> bytes:
    """Opcodes that call a function of the list with what these opcodes build."""
    module, name = function.rsplit(".", 1)
    return f"c{module}\n{name}\n(".encode() + b"".join(arguments) + b"tR"


def numbers(*values: int) -> bytes:
    """Opcodes of a tuple."""
    return b"(" + b"".join(f"I{value}\n".encode() for value in values) + b"t"


OBJECTS, FLOATS, TEXT = calls("numpy.dtype", b"VO\n"), calls("numpy.dtype", b"Vf8\n"), b"C\x08AAAAAAAA"
HIDDEN = OBJECTS + b"(I3\nV|\nNNNI-1\nI-1\nI0\ntb"  # a state with flags 0, by which objects pass for numbers
OUTSIDE = calls("numpy.dtype", b"VV8\n") + b"(I3\nV|\nN(Va\nt}Va\n(" + FLOATS + b"I100000000\ntsI8\nI1\nI0\ntb"
RECONSTRUCT, BUFFER = "numpy._core.multiarray._reconstruct", "numpy._core.numeric._frombuffer"
EMPTY = calls(RECONSTRUCT, b"cnumpy\nndarray\n", numbers(0), b"C\x01b")


def buffer(kind: bytes, *shape: int) -> bytes:
    return calls(BUFFER, TEXT, kind, numbers(*shape), b"VC\n")


CASES = {  # the first three ended in a segmentation fault, each once
    "an array of objects over bytes": calls("numpy.ndarray", numbers(1), OBJECTS, TEXT),
    "objects whose state says that they are numbers": buffer(HIDDEN, 1),
    "a field far outside": OUTSIDE,
    "an array of records with such a field": buffer(OUTSIDE, 1),
    "an array with strides": calls("numpy.ndarray", numbers(9), FLOATS, TEXT, b"I0\n", numbers(1000000)),
    "more numbers than bytes": buffer(FLOATS, 1000),
    "a negative shape": buffer(FLOATS, -1, -1),
    "a shape whose product overflows": buffer(FLOATS, 2**32, 2**32, 2),
    "a state of another form": EMPTY + b"(I1\n" + numbers(1) + b"I0\nI0\n" + TEXT + b"tb",
    "a state with too many bytes": EMPTY + b"(I1\n" + numbers(0) + FLOATS + b"I0\n" + TEXT + b"tb",
    "an array that is not an array": calls(RECONSTRUCT, b"cnumpy\ndtype\n", numbers(0), b"C\x01b"),
    "a class that is changed": b"cscipy.sparse\ncsr_matrix\n(N}V__len__\nI1\nstb",
    "a function that is changed": b"c_codecs\nencode\n}Vcall\nI1\nsb",
    "a memo of 30 GB": b"]r\xff\xff\xff\xff",
    "a list in itself": b"]q\x00h\x00a",
    "lists in lists": b"]" * 1000 + b"a" * 999,
    "an array as a key": b"}(" + FLOATS + b"I1\nu",
    "a class by itself": b"cnumpy\nndarray\n",
    "a sparse matrix of nothing": b"cscipy.sparse\ncsr_matrix\n)\x81",
    "a function of the system": b"cposix\nsystem\n(Vtrue\ntR",
}


def refused(content: bytes) -> bool:
    """Whether a pickle is refused in one line that says what to do; what is read holds together."""
    try:
        found = safe_pickle.load(content, "some.file")
    except Failed as error:
        told = str(error)
        assert re.match(r"some.file is (not read|damaged): .*(do not use it|fetch it again)", told) and len(told) < 400
        return True
    assert not isinstance(found, safe_pickle.Rows) or found.dense().shape == found.shape
    return False


def csr(**changes) -> bytes:
    """A sparse matrix of 2 x 3 as scipy writes it."""
    parts = {"data": np.ones(2), "indices": np.array([0, 2], np.int32), "indptr": np.array([0, 1, 2], np.int32)}
    state = pickle.dumps({"_shape": (2, 3), **parts, **changes}, 2)[2:-1]
    return b"\x80\x02cscipy.sparse._csr\ncsr_matrix\n)\x81" + state + b"b."


def test_a_sparse_matrix_is_read():
    assert safe_pickle.load(csr(), "a").dense().tolist() == [[1, 0, 0], [0, 0, 1]]


OUTSIDE_ITSELF = (  # changes of a sparse matrix, by which it would point beyond its parts
    {"_shape": (2, 2)},
    {"_shape": (2**20, 2**20)},
    {"_shape": (2, -3)},
    {"indices": np.array([0, -1])},
    {"indices": np.array([0.0, 1.0])},
    {"indptr": np.array([0, 2, 1])},
    {"indptr": np.array([0, 1])},
    {"data": np.ones((2, 1))},
    {"data": None},
)


@pytest.mark.parametrize(
    "array", [np.arange(6, dtype=">i4").reshape(2, 3), np.asfortranarray(np.eye(3)), np.array([True])]
)
@pytest.mark.parametrize("protocol", range(6))
def test_arrays_of_every_form_are_read(array, protocol):
    found = safe_pickle.load(pickle.dumps([array, {"a": array}], protocol), "a")
    assert all(one.dtype == array.dtype and (one == array).all() for one in (found[0], found[1]["a"]))


def test_no_pickle_touches_memory_changes_a_class_or_ends_in_more_than_a_line():
    wrong = [b"\x80\x04" + case + b"." for case in CASES.values()] + [csr(**changes) for changes in OUTSIDE_ITSELF]
    assert all(map(refused, wrong))
    changed = []
    for seed in range(200):
        chance, data = random.Random(seed), bytearray(csr())
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        changed.append(refused(bytes(data)))
    assert any(changed)
    counts = {"pickles that mean harm": len(wrong), "good ones with random bytes": len(changed)}
    hold("pickles", "pickles of arrays and matrices", counts, "refused in one line, or read as what they say; no crash")


def test_lists_that_share_their_parts_are_read_in_time():
    value = [1]
    for _ in range(45):
        value = [value, value]
    found = safe_pickle.load(pickle.dumps(value), "a")
    assert found[0] is found[1]
