"""Read pickles of numbers without running anything that is in them.

A pickle is a program that may call any function. Here it may only rebuild arrays, sparse matrices, lists and
dictionaries; it gets stand-ins where a real class could do more. Anything else ends the reading.
"""

import collections
import io
import pickle

import numpy as np

from lowmem.errors import Failed


class Refused(Exception):
    """A pickle asks for something that is no data."""


class Rows:
    """Stand-in for scipy's csr_matrix: shape, data, indices, indptr."""

    def __setstate__(self, state: dict):
        shape = state.get("_shape", state.get("shape"))
        self.shape = tuple(int(length) for length in shape)
        self.data, self.indices, self.indptr = (np.asarray(state[key]) for key in ("data", "indices", "indptr"))

    def __len__(self) -> int:
        return self.shape[0]

    def dense(self) -> np.ndarray:
        """(rows, columns) float32."""
        found = np.zeros(self.shape, dtype=np.float32)
        found[np.repeat(np.arange(len(self)), np.diff(self.indptr)), self.indices] = self.data
        return found


def rebuilt(kind: type, base: type, state) -> object:
    """copy_reg._reconstructor for the stand-in, which is all that may be built this way."""
    if kind is not Rows or base is not object:
        raise Refused(f"it builds a {getattr(kind, '__name__', kind)}")
    return Rows()


def array(kind: type, shape, dtype) -> np.ndarray:
    """numpy's _reconstruct for plain arrays: an empty one, whose state follows."""
    if kind is not np.ndarray:
        raise Refused(f"it builds a {getattr(kind, '__name__', kind)}")
    return np.ndarray.__new__(np.ndarray, shape, dtype)


def from_buffer(buffer, dtype: np.dtype, shape: tuple, order: str) -> np.ndarray:
    """numpy's _frombuffer, which newer pickles of arrays call."""
    return np.frombuffer(buffer, dtype=dtype).reshape(shape, order=order).copy()


def latin1(text: str, encoding: str) -> bytes:
    """_codecs.encode, by which Python 3 writes bytes into old kinds of pickles; other encodings may be bombs."""
    if encoding != "latin1":
        raise Refused(f"it encodes as {encoding}")
    return text.encode("latin1")


def under(modules: tuple[str, ...], name: str, stand_in) -> dict:
    """One stand-in under the module names of different versions."""
    return {f"{module}.{name}": stand_in for module in modules}


ALLOWED = {
    **under(("numpy.core.multiarray", "numpy._core.multiarray"), "_reconstruct", array),
    **under(("numpy.core.numeric", "numpy._core.numeric"), "_frombuffer", from_buffer),
    **under(("scipy.sparse.csr", "scipy.sparse._csr", "scipy.sparse"), "csr_matrix", Rows),
    **under(("copy_reg", "copyreg"), "_reconstructor", rebuilt),
    **under(("__builtin__", "builtins"), "list", list),
    **under(("__builtin__", "builtins"), "object", object),
    "_codecs.encode": latin1,
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
    "collections.defaultdict": collections.defaultdict,
}


class Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        try:
            return ALLOWED[f"{module}.{name}"]
        except KeyError:
            raise Refused(f"it asks for {module}.{name}") from None


def load(content: bytes, name: str):
    """What a pickle holds. name: for the message. Failed when it is damaged or asks for more than data."""
    try:
        found = Reader(io.BytesIO(content), encoding="latin1").load()
    except Refused as error:
        raise Failed(
            f"{name} is not read: {error}, and a data file may only hold arrays and lists; do not use it"
        ) from error
    except Exception as error:  # a damaged pickle raises nearly anything
        raise Failed(f"{name} is damaged: {type(error).__name__}: {error}; fetch it again") from error
    if isinstance(found, np.ndarray) and found.dtype.hasobject:
        raise Failed(
            f"{name} is not read: it is an array of objects, and a data file may only hold numbers; do not use it"
        )
    return found
