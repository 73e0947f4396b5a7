"""The official Adam_mini's signature on this package's AdamMini: an existing script changes its import and nothing else.

    from lowmem.compat import Adam_mini          # was: from adam_mini import Adam_mini

Blocks follow the official rules of version 1.1.1, which look at lower-cased parameter names (first match wins):
bias: every coordinate; query and key names: dim * dim / n_heads consecutive elements; embedding, output, value, attention
projection and MLP names: one block per row; anything else: one block. Names with norm, ln or bias are not decayed.
Numbers agree with the official package wherever it runs; weights that are frozen now have groups too, and train once they are
unfrozen, while the official code leaves them out for good. Where it crashes, this does what the rule means: under the row
rule a vector is one block, and a tensor of more axes has one block per slice of its first axis.

These rules misjudge fused projections, transposed layers and unusual head sizes; lowmem.optim.AdamMini(model) does not.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable

from torch import nn

from lowmem.blocks import Misfit, ParamBlocks, along, coordinates, one_block
from lowmem.optim.adam_mini import AdamMini


class Adam_mini(AdamMini):
    """Adam-mini with the official arguments; see the module docstring.

    named_parameters: (name, parameter) pairs, usually model.named_parameters(). dim, n_heads: width and query heads of
    the model; together they give the size of a query or key block. n_kv_heads: only checked to divide n_heads, as in the
    official code (blocks are cut by size, so key blocks come out right). verbose: say once what was found.
    model_sharding: accepted and ignored. The attributes embd_names, output_names, wqk_names, wv_names, attn_proj_names,
    mlp_names and adam_block_names may be edited until the first step. Groups hold betas, where the official ones hold
    beta1 and beta2. Raises Misfit, naming the parameter, for a query or key that does not divide into blocks.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        model_sharding: bool | None = None,
        dim: int = 2048,
        n_heads: int = 32,
        n_kv_heads: int | None = None,
        verbose: bool = True,
        **common,
    ):
        for key, value in (("dim", dim), ("n_heads", n_heads), ("n_kv_heads", n_kv_heads or n_heads)):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value) or value < 1:
                raise ValueError(
                    f"{key}={value!r}: a whole number above 0 (models of several parts keep it in config.get_text_config())"
                )
        if n_kv_heads is not None and n_heads % n_kv_heads:
            raise ValueError(f"n_kv_heads={n_kv_heads!r}: must divide n_heads={n_heads}")
        self.dim, self.n_heads, self.n_kv_heads = int(dim), int(n_heads), int(n_kv_heads or n_heads)
        self.head_numel = self.dim * self.dim // self.n_heads
        self.verbose, self._placed = verbose, False
        self.embd_names = {"embed", "embd", "wte"}
        self.output_names = {"lm_head", "output", "final_layer"}
        self.wqk_names = {"k_proj", "q_proj", "wq", "wk", "query", "key"}
        self.wv_names = {"v_proj", "wv", "value"}
        self.attn_proj_names = {"o_proj", "wo", "attn.proj"}
        self.mlp_names = {"feed_forward", "linear", "mlp"}
        self.adam_block_names = {"bias"}
        named_parameters = list(named_parameters)
        if not all(
            isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str) for pair in named_parameters
        ):
            raise ValueError("named_parameters takes (name, parameter) pairs, as model.named_parameters() gives them")
        groups = [self._group(name, p, weight_decay) for name, p in named_parameters]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*every tensor is one block")  # replaced before the first step
            super().__init__(groups, lr, betas, eps, weight_decay, **common)

    @staticmethod
    def _group(name: str, p: nn.Parameter, weight_decay: float) -> dict:
        """One group per parameter, as scripts that read group["name"] expect."""
        undecayed = any(part in name.lower() for part in ("norm", "ln", "bias"))
        return {"params": [(name, p)], "name": name.lower(), "weight_decay": 0.0 if undecayed else weight_decay}

    def kind(self, name: str) -> str:
        """The official rule a name falls under: coordinate, head, row or tensor."""
        name = name.lower()
        rows = self.embd_names | self.output_names | self.wv_names | self.mlp_names | self.attn_proj_names
        rules = (("coordinate", self.adam_block_names), ("head", self.wqk_names), ("row", rows))
        return next((kind for kind, words in rules if any(word in name for word in words)), "tensor")

    def _official(self, name: str, shape: tuple[int, ...]) -> ParamBlocks:
        kind, elements = self.kind(name), math.prod(shape)
        if kind == "coordinate":
            return coordinates(name, shape)
        if kind == "row" and len(shape) >= 2:
            return along(name, shape, "neuron", ((0, shape[0], 1),))
        if kind != "head":
            return one_block(name, shape)
        if elements % self.head_numel:
            raise Misfit(
                f"{name}: {elements} elements cannot be cut into query or key blocks of dim * dim / n_heads = "
                f"{self.head_numel}; check dim and n_heads, or use lowmem.optim.AdamMini(model), which reads them off it"
            )
        return along(name, shape, "head", ((0, elements, self.head_numel),), merge=len(shape))

    def place(self) -> None:
        """Find the blocks of all parameters from the name sets as they stand; the first step does this by itself."""
        names = {p: group.get("name") or self.name(p) for group in self.param_groups for p in group["params"]}
        self.members.blocks.update({p: self._official(name, tuple(p.shape)) for p, name in names.items()})
        if self.verbose and not self._placed:
            names = {p: name for p, name in names.items() if p.requires_grad}
            scalars, elements = sum(self.members.blocks[p].count for p in names), sum(p.numel() for p in names)
            kinds = [self.kind(name) for name in names.values()]
            counts = ", ".join(f"{kinds.count(kind)} by {kind}" for kind in ("head", "row", "coordinate", "tensor"))
            print(f"Adam-mini: {len(names)} tensors ({counts}): {scalars:,} second moments for {elements:,} parameters")
        self._placed = True

    def update(self, work: list, factor: float = 1.0) -> None:
        """See the driver; both step() and the fused backward come this way."""
        if not self._placed:
            self.place()
        super().update(work, factor)

    def add_param_group(self, group: dict) -> None:
        """As in torch; names of the new parameters are looked at before the next step. Without a weight_decay in it, those
        named in {"params": [(name, parameter), ...]} are decayed by the same rule as the first ones, each in its own group."""
        self._placed = False
        params = group["params"]
        if not isinstance(params, nn.Parameter | set):
            group = {**group, "params": (params := list(params))}
        if "weight_decay" in group or not all(isinstance(one, tuple) for one in params):
            super().add_param_group(group)
            return
        for name, p in params:
            super().add_param_group({**group, **self._group(name, p, self.defaults["weight_decay"])})

    def save(self) -> dict:
        """See AdamMini; official checkpoints hold other keys and do not load."""
        if not self._placed:
            self.place()
        return super().save()

    def load(self, state_dict: dict) -> None:
        """See AdamMini."""
        if not self._placed:
            self.place()
        super().load(state_dict)

    def __getstate__(self) -> dict:
        own = {key: value for key, value in self.__dict__.items() if key.endswith("_names") and key != "_names"}
        own |= {key: self.__dict__[key] for key in ("dim", "n_heads", "n_kv_heads", "head_numel", "verbose", "_placed")}
        return {**super().__getstate__(), **own}
