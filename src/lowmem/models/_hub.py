"""Models of the Hugging Face hub, or of a folder, from their configuration alone. No code of theirs is ever run.

On an invalid configuration transformers raises whatever its code runs into, so every such error becomes one line here.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
from collections.abc import Iterator
from pathlib import Path

from lowmem.errors import Misuse

DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers")
MOST_LAYERS = 2000
SIZES = {  # beyond these nothing could be meant
    **{"vocab_size": 1 << 24, "hidden_size": 1 << 18, "intermediate_size": 1 << 20},
    **{"num_attention_heads": 4096, "num_key_value_heads": 4096},
}
OWN_CODE = "auto_map"
SECONDS = 5  # for the hub's first response


def config_of(name: str):
    """The configuration behind a name or folder; Misuse, one line, where it cannot be read or needs code of its own."""
    check_name(name)
    try:
        from transformers import AutoConfig
    except ImportError as error:
        raise Misuse(f"model {name}: hub models need transformers; pip install transformers") from error
    with in_one_line(name, "its configuration cannot be used"), quiet():
        if not Path(name).exists():
            ask_once(name)
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    text = text_of(config)
    for key, most in SIZES.items():
        value = number_of(text, key)
        if isinstance(value, (list, tuple)) or value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= most:
            raise Misuse(f"model {name}: {key} is {str(value)[:40]!r}; a whole number from 1 to {most} is needed")
    heads, groups = (number_of(text, key) for key in ("num_attention_heads", "num_key_value_heads"))
    if isinstance(heads, int) and isinstance(groups, int) and heads % groups:
        raise Misuse(f"model {name}: {heads} attention heads cannot share {groups} key and value heads")
    depth = depth_of(text)
    if depth is None and not any(
        hasattr(text, key) for key in DEPTHS
    ):  # several stacks, each with a configuration of its own
        return config
    if isinstance(depth, bool) or not isinstance(depth, int) or not 0 < depth <= MOST_LAYERS:
        raise Misuse(f"model {name}: its number of layers is {depth!r}; 1 to {MOST_LAYERS} can be planned")
    return config


def check_name(name: str) -> None:
    """Misuse for a name that can be no model of the hub, or a folder without a configuration."""
    path = Path(name)
    if not name.strip():
        raise Misuse("the name of the model is empty")
    if path.is_dir() and not (path / "config.json").is_file():
        raise Misuse(f"model {name}: no config.json in this folder")
    if not path.exists() and (name.count("/") != 1 or name[0] in "./~"):
        raise Misuse(f"model {name}: there is no such folder; a hub name is OWNER/NAME")


def ask_once(name: str) -> None:
    """Misuse where a name is in no cache and the hub does not answer; transformers would ask six times, in half a minute."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(huggingface_hub.try_to_load_from_cache(name, "config.json"), str):
        return
    address = huggingface_hub.hf_hub_url(name, "config.json")
    try:
        huggingface_hub.get_hf_file_metadata(address, timeout=SECONDS)
    except HfHubHTTPError:  # it answered; transformers will interpret that
        return
    except Exception as error:
        reason = " ".join(str(error).split())
        raise Misuse(f"model {name}: not in the cache, and {address} cannot be reached: {reason}") from error


def text_of(config):
    """The part of a configuration that speaks of the language model."""
    try:
        text = config.get_text_config()
    except ValueError:  # it has several, of which the decoder's speaks of what is trained here
        text = config.get_text_config(decoder=True)
    return text if depth_of(text) is not None else config


def number_of(text, key: str):
    """A field of a configuration; None where it has none, or one for each layer."""
    try:
        return getattr(text, key, None)
    except Exception:  # transformers refuses to name one number for all layers
        return None


def depth_of(text) -> int | None:
    """Number of layers; of an encoder and decoder, those of the decoder."""
    keys = ("decoder_layers", *DEPTHS) if hasattr(text, "decoder_layers") else DEPTHS
    return next((getattr(text, key) for key in keys if getattr(text, key, None) is not None), None)


def kinds_of(text) -> list:
    """One entry per layer, equal where layers are alike; a configuration may list them under several names."""
    depth = depth_of(text) or 0
    lists = [value for value in vars(text).values() if isinstance(value, (list, tuple)) and len(value) == depth]
    return [repr(row) for row in zip(*lists)] if lists else [""] * depth


def shallow(config, depth: int):
    """A copy of a configuration with so many layers; AttributeError and the like where it cannot be told."""
    cut = copy.deepcopy(config)
    text, full = text_of(cut), depth_of(text_of(cut))
    for key in DEPTHS:
        if isinstance(getattr(text, key, None), int):
            with contextlib.suppress(AttributeError, NotImplementedError):  # one of them is the other's alias
                setattr(text, key, depth)
    for key, value in list(vars(text).items()):
        if isinstance(value, (list, tuple)) and len(value) == full:
            setattr(text, key, value[:depth])
    return cut


def build(name: str, config, attention: str | None = None):
    """A causal language model of a configuration. attention: "eager", "sdpa", or None for what the model prefers."""
    from transformers import AutoModelForCausalLM

    settings = {} if attention is None else {"attn_implementation": attention}
    with in_one_line(name, "transformers cannot build it as a causal language model"), quiet():
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False, **settings)


def has_sdpa(name: str, config) -> bool:
    """Whether PyTorch's fused attention can be asked for; the model that could be built is thrown away."""
    import torch

    try:
        with torch.device("meta"):
            build(name, shallow(config, 1), "sdpa")
    except Misuse as error:
        return "scaled_dot_product_attention" not in str(error)
    return True


@contextlib.contextmanager
def in_one_line(name: str, what: str) -> Iterator[None]:
    """Whatever goes wrong inside becomes Misuse with its reason in one line."""
    try:
        yield
    except Misuse:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or "no reason given"
        kind = "" if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: "
        if OWN_CODE in reason or "trust_remote_code" in reason:
            reason, kind = "it brings code of its own, which is not run here", ""
        raise Misuse(f"model {name}: {what}: {kind}{reason[:300]}") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The hub's libraries report progress and hints; a plan prints its own answer only."""
    with (
        silenced("transformers", logging.ERROR),
        silenced("huggingface_hub", logging.ERROR),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        yield


@contextlib.contextmanager
def silenced(name: str, level: int) -> Iterator[None]:
    """Nothing below this level from a library's logger."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
