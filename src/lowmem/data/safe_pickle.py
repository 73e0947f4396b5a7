"""Read pickles of numbers without running anything that is in them, and without letting them touch memory.

A pickle is a program that may call any function. Here it only gets stand-ins that record their arguments: of an array its
shape, dtype and bytes, of a sparse matrix its state. Once the program has ended, the records are checked and turned into
arrays, so that NumPy never sees an argument that a file chose. Anything else is refused.
"""

import io
import pickle
import pickletools

import numpy as np

from lowmem.errors import Failed, one_line

KINDS = tuple(
    f"{kind}{size}" for kind, sizes in (("f", "248"), ("i", "1248"), ("u", "1248"), ("b", "1")) for size in sizes
)
DEEPEST = 50  # levels of nested containers
LARGEST = 1 << 30  # elements of a sparse matrix once it is dense
MEMO = 1 << 20  # memo slots; a pickle of 10 bytes could otherwise make the memo 30 GB large
MEMO_OPCODES = ("PUT", "BINPUT", "LONG_BINPUT")


class Refused(Exception):
    """A pickle asks for something that is not data."""


class Noted(type):
    """A class that a pickle cannot change."""

    def __setattr__(cls, name, value):
        raise Refused("it changes a class")


class Form(metaclass=Noted):
    """Stand-in for an object while a pickle is read: its constructor arguments, and its state."""

    __slots__ = ("arguments", "state")

    def __new__(cls, *arguments):
        self = object.__new__(cls)
        self.arguments, self.state = arguments, None
        return self

    def __setstate__(self, state):
        self.state = state


class Kind(Form):
    """A numpy.dtype."""

    __slots__ = ()

    def found(self) -> np.dtype:
        """The recorded dtype; Refused unless it is numeric."""
        name = self.arguments[0] if self.arguments else None
        if not isinstance(name, str) or name not in KINDS:
            raise Refused(f"it holds an array of {str(name)[:20]!r} and not of numbers")
        state = self.state or (3, "=")
        order = state[1] if isinstance(state, tuple) and len(state) >= 2 else None
        if order not in ("<", ">", "|", "=") or any(value not in (None, -1, 0) for value in state[2:]):
            raise Refused("it describes numbers in an unsupported way")
        return np.dtype(name).newbyteorder(order)


class Array(Form):
    """A numpy.ndarray: _reconstruct(ndarray, (0,), b"b") and its state (version, shape, kind, Fortran order?, bytes)."""

    __slots__ = ()

    def found(self) -> np.ndarray:
        """The recorded array; Refused for an invalid state."""
        if self.arguments[:1] != (NAMES["numpy.ndarray"],) or not isinstance(self.state, tuple) or len(self.state) != 5:
            raise Refused("it builds an array in an unsupported way")
        _, shape, kind, fortran, content = self.state
        return filled(content, kind, shape, "F" if fortran else "C")


class Buffer(Form):
    """numpy's _frombuffer(bytes, kind, shape, order), which newer pickles of arrays call."""

    __slots__ = ()

    def found(self) -> np.ndarray:
        """The recorded array; Refused for other arguments."""
        if self.state is not None or len(self.arguments) != 4 or self.arguments[3] not in ("C", "F"):
            raise Refused("it builds an array in an unsupported way")
        return filled(*self.arguments)


class Scalar(Form):
    """The class numpy.ndarray where _reconstruct names it; nothing may be made of it."""

    __slots__ = ()

    def found(self):
        """Refused, always."""
        raise Refused("it makes an array in an unsupported way")


class Rows(Form):
    """scipy's csr_matrix: shape, data, indices, indptr."""

    __slots__ = ("data", "indices", "indptr", "shape")

    def found(self) -> "Rows":
        """Itself, checked: a matrix in compressed rows; Refused where it is none."""
        state = self.state if isinstance(self.state, dict) else {}
        shape = state.get("_shape", state.get("shape"))
        parts = {key: converted(state.get(key)) for key in ("data", "indices", "indptr")}
        if (
            self.arguments
            or not is_shape(shape, 2)
            or shape[0] * shape[1] > LARGEST
            or not all(isinstance(a, np.ndarray) for a in parts.values())
        ):
            raise Refused("its sparse matrix lacks shape, data, indices or indptr")
        data, indices, indptr = parts.values()
        sizes = (
            len(indices) == len(data) and len(indptr) == shape[0] + 1 and data.ndim == indices.ndim == indptr.ndim == 1
        )
        if not sizes or any(a.dtype.kind not in "iu" for a in (indices, indptr)):
            raise Refused("the parts of its sparse matrix are inconsistent")
        ordered = indptr[0] == 0 and indptr[-1] == len(data) and (np.diff(indptr.astype(np.int64)) >= 0).all()
        if not ordered or (len(indices) and not 0 <= indices.min() <= indices.max() < shape[1]):
            raise Refused("the parts of its sparse matrix are inconsistent")
        self.shape, self.data, self.indices, self.indptr = shape, data, indices, indptr
        return self

    def __len__(self) -> int:
        return self.shape[0]

    def dense(self) -> np.ndarray:
        """(rows, columns) float32."""
        made = np.zeros(self.shape, dtype=np.float32)
        made[np.repeat(np.arange(len(self)), np.diff(self.indptr)), self.indices] = self.data
        return made


class Function(metaclass=Noted):
    """A function that a pickle may call and not change."""

    __slots__ = ("call",)

    def __init__(self, call):
        object.__setattr__(self, "call", call)

    def __call__(self, *arguments):
        return self.call(*arguments)

    def __setattr__(self, name, value):
        raise Refused("it changes a function")

    def __setstate__(self, state):
        raise Refused("it changes a function")


def filled(content, kind, shape, order: str) -> np.ndarray:
    """An array of these bytes, a copy."""
    content = content.encode("latin1") if isinstance(content, str) else content
    dtype, count = kind.found() if isinstance(kind, Kind) else None, 1
    if dtype is None or not isinstance(content, (bytes, bytearray)) or not is_shape(shape):
        raise Refused("it builds an array in an unsupported way")
    for length in shape:
        count *= length
    if len(content) != count * dtype.itemsize:
        raise Refused(f"an array of shape {shape} has {len(content)} bytes")
    return np.frombuffer(content, dtype).reshape(shape, order=order).copy(order="K")


def is_shape(value, dimensions: int | None = None) -> bool:
    """Whether a value is a shape of an array: at most 8 whole numbers, `dimensions` of them where that is given."""
    plain = isinstance(value, tuple) and all(type(n) is int and 0 <= n < 1 << 40 for n in value)
    return plain and len(value) <= 8 and dimensions in (None, len(value))


def reconstructed(kind, base, state):
    """copy_reg._reconstructor, by which old pickles make a sparse matrix."""
    if kind is not Rows or base is not object or state is not None:
        raise Refused("it builds an object in an unsupported way")
    return Rows()


def latin1(text, encoding) -> bytes:
    """_codecs.encode, by which Python 3 writes bytes into old kinds of pickles; other encodings may be bombs."""
    if encoding != "latin1" or not isinstance(text, str):
        raise Refused(f"it encodes as {str(encoding)[:20]}")
    return text.encode("latin1")


def a_list(*content) -> list:
    """list(*content), from lists and tuples alone."""
    if any(not isinstance(part, (list, tuple)) for part in content) or len(content) > 1:
        raise Refused("it makes a list in an unsupported way")
    return list(*content)


def a_dictionary(*factory) -> dict:
    """collections.defaultdict, as a plain dictionary."""
    return {}


def under(modules: tuple[str, ...], name: str, stand_in) -> dict:
    """One stand-in under the module names of different versions."""
    return {f"{module}.{name}": stand_in for module in modules}


NAMES = {
    **under(("numpy.core.multiarray", "numpy._core.multiarray"), "_reconstruct", Array),
    **under(("numpy.core.numeric", "numpy._core.numeric"), "_frombuffer", Buffer),
    **under(("scipy.sparse.csr", "scipy.sparse._csr", "scipy.sparse"), "csr_matrix", Rows),
    **under(("copy_reg", "copyreg"), "_reconstructor", Function(reconstructed)),
    **under(("__builtin__", "builtins"), "list", Function(a_list)),
    **under(("__builtin__", "builtins"), "object", object),
    "_codecs.encode": Function(latin1),
    "numpy.ndarray": Scalar,
    "numpy.dtype": Kind,
    "collections.defaultdict": Function(a_dictionary),
}


class Reader(pickle.Unpickler):
    """An unpickler that returns stand-ins for classes and functions."""

    def find_class(self, module: str, name: str):
        try:
            return NAMES[f"{module}.{name}"]
        except KeyError:
            raise Refused(f"it asks for {module[:40]}.{name[:40]}") from None


def converted(value, depth: int = 0, known: dict | None = None):
    """The value with stand-ins replaced by arrays and matrices, in containers too. known: {id: converted value}."""
    known = {} if known is None else known
    if type(value) in (int, float, bool, str, bytes, type(None)):
        return value
    if id(value) not in known:
        if depth > DEEPEST:
            raise Refused("its containers are nested too deeply")
        if isinstance(value, Form):
            known[id(value)] = value.found()
        elif type(value) in (list, tuple):
            known[id(value)] = type(value)(converted(item, depth + 1, known) for item in value)
        elif type(value) is dict and all(type(key) in (int, str) for key in value):
            known[id(value)] = {key: converted(item, depth + 1, known) for key, item in value.items()}
        else:
            raise Refused(f"it holds a {type(value).__name__}")
    return known[id(value)]


def load(content: bytes, name: str):
    """What a pickle holds. name: for the message. Failed when it is damaged or asks for more than data."""
    try:
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name in MEMO_OPCODES and argument >= MEMO:
                raise Refused("it asks for more memory than its size")
        return converted(Reader(io.BytesIO(content), encoding="latin1").load())
    except Refused as error:
        raise Failed(
            f"{name} is not read: {error}, and a data file may only hold arrays and lists; do not use it"
        ) from error
    except Exception as error:  # a damaged pickle may raise nearly anything
        raise Failed(f"{name} is damaged: {type(error).__name__}: {one_line(error)}; fetch it again") from error
