"""What a plan is about: a model by name, at any depth, with its loss. Nothing is downloaded but a configuration.

Names are sizes of lowmem/models (llama2-7b, gpt2:125m), or a Hugging Face name or folder of a causal language model.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lowmem.errors import Misuse
from lowmem.memory import model_names
from lowmem.memory.model_names import FILES
from lowmem.models import _hub

MOST_TRACED = 200  # layers, one by one


@dataclasses.dataclass(frozen=True)
class Target:
    """A model family of one shape.

    build(depth, attention) -> nn.Module on the meta device, of any number of layers. make() -> the real one.
    loss(model, tokens) -> scalar, tokens (B, T) being both input and target. layers(model) -> its layers in order.
    depth: layers of the real model. period: layers after which their kinds repeat (1 where all are alike), once the first
    `lead` of them are passed, which may be of other kinds.
    longest: positions the model knows. fused: whether it can use a fused attention kernel.
    """

    name: str
    build: Callable[[int, str], nn.Module]
    make: Callable[[], nn.Module]
    loss: Callable[[nn.Module, Tensor], Tensor]
    layers: Callable[[nn.Module], list[nn.Module]]
    depth: int
    period: int
    vocab_size: int
    longest: int
    fused: bool = True
    lead: int = 0
    known: int | None = None

    def parameters(self) -> int:
        """Trainable parameters of the real model."""
        return trained(self.build(self.depth, "fused")) if self.known is None else self.known


def trained(model: nn.Module) -> int:
    """Trainable parameters of a model."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def find(model: str | dict) -> Target:
    """The target of a name, or of a dictionary {name: file of lowmem/models, size, fields of its Config}.

    Raises Misuse, naming the nearest known model.
    """
    if isinstance(model, dict):
        return own(model["name"], {key: value for key, value in model.items() if key != "name"})
    model_names.check(model)
    if model in FILES:
        return own(model, {})
    sizes, (file, _, size) = model_names.sizes(), model.rpartition(":")
    if size in sizes and file in ("", sizes[size]):
        return own(sizes[size], {"size": size})
    return hub(model)


def own(file: str, settings: dict) -> Target:
    """A model of this package."""
    module = importlib.import_module(f"lowmem.models.{file}")
    if not hasattr(module, "SIZES"):
        raise Misuse(f"{file} is not a language model; choose from: {', '.join(FILES)}")

    def build(depth: int, attention: str) -> nn.Module:
        with torch.device("meta"):
            return module.build(**{**settings, "n_layer": depth})

    config = build(1, "fused").config
    given = {**module.SIZES.get(settings.get("size"), {}), **settings}
    return Target(
        name=settings.get("size") or file,
        build=build,
        make=lambda: module.build(**settings),
        loss=lambda model, tokens: model(tokens, tokens),
        layers=lambda model: list(model.blocks),
        depth=given.get("n_layer", module.Config.n_layer),
        period=1,
        vocab_size=config.vocab_size,
        longest=config.block_size,
    )


def hub(name: str) -> Target:
    """A causal language model of the Hugging Face hub, or of a folder with its config.json."""
    config = _hub.config_of(name)
    text = _hub.text_of(config)
    depth, fused = _hub.depth_of(text), _hub.has_sdpa(name, config)

    def build(layers: int, attention: str) -> nn.Module:
        way = "sdpa" if fused and attention != "eager" else "eager"
        cut = config if layers == depth or depth is None else _hub.shallow(config, layers)
        with torch.device("meta"):
            return _hub.build(name, cut, way).float().train()

    with _hub.in_one_line(name, "no stack of layers is found in it"):
        whole = build(depth, "fused")
        lead, period = pattern(whole, _hub.kinds_of(text), build)
        depth = depth or period
    if period == depth > MOST_TRACED:
        raise Misuse(f"model {name}: transformers cannot build it with fewer layers, and {depth} are too many")
    return Target(
        name=name,
        build=build,
        make=lambda: _hub.build(name, config).float().train(),
        loss=lambda model, tokens: model(input_ids=tokens, labels=tokens, use_cache=False).loss,
        layers=lambda model: layers_of(model, None),
        depth=depth,
        period=period,
        vocab_size=text.vocab_size,
        longest=longest_of(text),
        fused=fused,
        lead=lead,
        known=trained(whole),
    )


def longest_of(text) -> int:
    """Positions that a model has; far more than anybody asks for where it names none, as xlnet does with -1."""
    count = getattr(text, "max_position_embeddings", None)
    return count if isinstance(count, int) and count > 0 else 1 << 20


def pattern(whole: nn.Module, listed: list[str], build) -> tuple[int, int]:
    """(lead, period) of a model's layers: after the first `lead` they repeat every `period`, in modules and in shapes, and in
    what the configuration lists for each. (0, all of them) where it cannot be cut short to a few layers of the same kinds."""
    depth = len(listed)
    try:
        kinds = list(zip(map(kind_of, layers_of(whole, depth)), listed, strict=True))
    except ValueError:  # it is no one stack of so many layers
        return 0, len(layers_of(whole, None))
    lead, period = min(
        ((lead_of(kinds, period), period) for period in range(1, depth + 1)), key=lambda of: of[0] + 2 * of[1]
    )
    few = traced(depth, lead, period)
    if few < depth:
        try:
            cut = layers_of(build(few, "fused"), few)
        except (Misuse, ValueError):
            return 0, depth
        if [kind_of(layer) for layer in cut] != [kind for kind, _ in kinds[:few]]:
            return 0, depth
    return lead, period


def lead_of(kinds: list, period: int) -> int:
    """How many of the first layers have to be passed until every layer is like the one `period` before it."""
    return next((i + 1 for i in range(len(kinds) - period - 1, -1, -1) if kinds[i] != kinds[i + period]), 0)


def traced(depth: int, lead: int, period: int) -> int:
    """Layers of the smaller model that stands for a deep one: so many that what is left is whole periods."""
    return min(depth, lead + 2 * period + (depth - lead) % period)


def kind_of(layer: nn.Module) -> tuple:
    """What a layer is made of: equal for layers that compute alike as far as modules and shapes tell."""
    inside = tuple((name, type(module).__name__) for name, module in layer.named_modules())
    return inside, tuple((name, tuple(p.shape)) for name, p in layer.named_parameters())


def layers_of(model: nn.Module, depth: int | None) -> list[nn.Module]:
    """The layers: the module list with most parameters, of `depth` entries where that is given."""
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and (depth is None or len(m) == depth)]
    if not lists:
        raise ValueError(f"no list of {depth} layers in {type(model).__name__}")
    return list(max(lists, key=lambda m: sum(p.numel() for p in m.parameters())))
