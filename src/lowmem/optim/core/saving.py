"""How a rule optimizer is saved, loaded, copied and pickled."""

from __future__ import annotations

import collections

from lowmem.optim.core.copies import Link
from lowmem.optim.core.loading import fitted
from lowmem.optim.core.sharding import is_dtensor, shard_of
from lowmem.optim.core.state_dict import complete, pack


class Saved:
    """The part of a RuleOptimizer that is saved and loaded."""

    def save(self) -> dict:
        """As in torch, plus each group's block signatures. With sharded parameters every process must call it."""
        self.settle()
        if self.shards.of and self.shards.checked:
            complete(self)
        return pack(self, super().save())

    def load(self, state_dict: dict) -> None:
        """As in torch, but what the state lacks is completed, and the saved partition must be this optimizer's.

        Storage stays this optimizer's: rounding, state_dtype, and with them the dtype of moments. The state of an
        unsharded optimizer is cut to what this process holds; the second moments of an Adam become block means.
        """
        self.settle()
        groups, state = fitted(self, state_dict)
        self.param_groups = groups
        self.state = collections.defaultdict(dict, state)

    def __getstate__(self) -> dict:
        self.settle()
        extra = {key: getattr(self, key) for key in ("members", "nonfinite", "_compile", "_offload", "skips_on_device")}
        return {**super().__getstate__(), **extra, "_no_decay": Link(self._no_decay)}

    def __setstate__(self, state: dict) -> None:
        no_decay = state.pop("_no_decay").target
        super().__setstate__(state)
        self._segments, self.plans, self._no_decay = {}, {}, no_decay
        self.shards = self.members.shards
        for p in (
            p for group in self.param_groups for p in group["params"] if is_dtensor(p) and p in self.members.blocks
        ):
            self.shards.add(p, shard_of(p))
