"""Live bytes of tensors, tracked operation by operation, for the accountant.

A dispatch mode sees each operation's results. What counts is the storage behind a tensor: it is alive from its first
sight until Python says that it is gone, whoever held it last. Works on fake tensors, which own no memory, as on real ones.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import weakref
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves

from lowmem.memory.operation_counts import OperationCounts

ROLES = ("parameters", "gradients", "optimizer_state", "activations", "communication", "temporaries", "host")
COMMUNICATION = ("c10d", "_c10d_functional", "fsdp")  # namespaces of operations that move shards
DEVICE = torch.ops.prim.device.default
NUMBER = torch.ops.aten._local_scalar_dense.default  # what .item() and .tolist() call


class Tracker(TorchDispatchMode):
    """Counts live bytes by role; keeps, per phase, the moment at which most bytes were alive.

    role and phase are set from outside and hold for what is allocated from then on; mark() gives tensors that exist
    already another role. peaks: {phase: {role: bytes}} at the largest total of that phase. "host" is counted apart and
    belongs to no total. paused: operations only pass through. Numbers read back from tensors without data are 1, so
    that step counters and norms work.
    """

    def __init__(self):
        super().__init__()
        self.role, self.phase, self.paused = "parameters", "setup", False
        self.work = OperationCounts()
        self.live = dict.fromkeys(ROLES, 0)
        self.total = 0  # of all roles but "host"
        self.peaks: dict[str, dict[str, int]] = {}
        self._highest: dict[str, int] = {}
        self._known: dict[int, list] = {}  # storage -> [reference, bytes, role]

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        # First, since most calls are this one: PyTorch itself asks for the device all the time.
        if operation is DEVICE and isinstance(args[0], FakeTensor):
            return args[0].fake_device
        if self.paused:
            return operation(*args, **kwargs)
        if any(_is_dtensor(t) for t in types):
            return NotImplemented  # it breaks itself into operations on local tensors, which come back here
        if operation is NUMBER and isinstance(args[0], FakeTensor):
            return 1.0 if args[0].dtype.is_floating_point else 1
        result = operation(*args, **kwargs)
        if operation is torch.ops._c10d_functional.wait_tensor.default:
            return result  # the tensor waited for is known already
        if operation.namespace != "prim":
            self.work.note(self.stage, operation, args, kwargs, result)
        role = "communication" if operation.namespace in COMMUNICATION else self.role
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.see(leaf, role)
        return result

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nobody compiles here

    @property
    def stage(self) -> str:
        """The phase up to its comma."""
        return self.phase.partition(",")[0]

    def see(self, tensor: Tensor, role: str | None = None) -> None:
        """Count a tensor's storage, if it is new."""
        for storage in storages(tensor):
            key = storage._cdata
            if key in self._known:
                continue
            reference = weakref.ref(storage, functools.partial(self._gone, key))
            self._known[key] = [reference, 0, role or self.role]
            self._resized(key, storage.nbytes())

    def mark(self, tensors: Iterable[Tensor], role: str) -> None:
        """Give the storages behind these tensors a role, counting those not seen yet."""
        for tensor in tensors:
            self.see(tensor, role)
            for storage in storages(tensor):
                entry = self._known[storage._cdata]
                self._add(entry[2], -entry[1])
                entry[2] = role
                self._add(role, entry[1])

    def restart(self) -> None:
        """Forget peaks and work; what is alive stays known."""
        self.peaks, self._highest, self.work = {}, {}, OperationCounts()

    def _gone(self, key: int, _reference) -> None:
        entry = self._known.pop(key, None)
        if entry is not None:
            self._add(entry[2], -entry[1])

    def _resized(self, key: int, size: int) -> None:
        entry = self._known[key]
        self._add(entry[2], size - entry[1])
        entry[1] = size

    def _add(self, role: str, size: int) -> None:
        self.live[role] += size
        if role != "host":
            self.total += size
        if size > 0 and self.total > self._highest.get(self.phase, -1):
            self._highest[self.phase] = self.total
            self.peaks[self.phase] = dict(self.live)

    def __enter__(self):
        """Also watches storages that are emptied and filled in place, as fully_shard does with gathered weights."""
        self._resize, tracker = torch.UntypedStorage.resize_, self

        def resize_(storage: torch.UntypedStorage, size: int):
            result = tracker._resize(storage, size)
            if (entry := tracker._known.get(storage._cdata)) is not None:
                if entry[2] in ("activations", "temporaries"):
                    tracker._add(entry[2], -entry[1])
                    entry[1], entry[2] = 0, "communication"
                tracker._resized(storage._cdata, size)
            return result

        torch.UntypedStorage.resize_ = resize_
        return super().__enter__()

    def __exit__(self, *error):
        torch.UntypedStorage.resize_ = self._resize
        return super().__exit__(*error)

    @contextlib.contextmanager
    def during(self, phase: str, role: str) -> Iterator[None]:
        """Phase and role for a stretch of the program."""
        before, self.phase, self.role = (self.phase, self.role), phase, role
        self._add(role, 0)
        if self.total > self._highest.get(phase, -1):  # what is alive at the start belongs to the phase too
            self._highest[phase], self.peaks[phase] = self.total, dict(self.live)
        try:
            yield
        finally:
            self.phase, self.role = before


def storages(tensor: Tensor) -> list[torch.UntypedStorage]:
    """The storages behind a tensor, also behind one that wraps others (DTensor)."""
    if is_traceable_wrapper_subclass(tensor):
        names, _ = tensor.__tensor_flatten__()
        inner = (getattr(tensor, name) for name in names)
        return [storage for x in inner if isinstance(x, Tensor) for storage in storages(x)]
    return [tensor.untyped_storage()]


def _is_dtensor(kind: type) -> bool:
    """Whether a type is a DTensor's, without importing that machinery: where nobody has, there is none."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and issubclass(kind, module.DTensor)
