"""Weights that stay in their files until a process knows which rows of them it keeps.

A model built on meta has shapes and no memory. register() notes which safetensors file holds each parameter. load() reads
them one tensor at a time: all of it, or after fully_shard only the rows of this process. So eight processes load a model
of 65 billion parameters with an eighth of it each and never more than one tensor besides. What was not registered, such
as a fresh adapter, stays unchanged.
"""

from pathlib import Path

import safetensors
import torch
from torch import Tensor, nn

from lowmem import distributed
from lowmem.errors import Failed
from lowmem.files import read_json
from lowmem.optim.core.sharding import shard_of

INDEX = "model.safetensors.index.json"


def tensors(folder: Path) -> dict[str, Path]:
    """{tensor: file} of a Hugging Face folder: as its index says, where it has one, else as its files do."""
    if (folder / INDEX).is_file():
        index = read_json(folder / INDEX)
        named = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(named, dict) or not all(Path(str(file)).name == file for file in named.values()):
            raise Failed(f"{folder / INDEX} is damaged: its weight_map names no files of this folder; get it again")
        found = {name: folder / file for name, file in named.items()}
        absent = sorted({path.name for path in found.values() if not path.is_file()})
        if absent:
            raise Failed(f"{folder}: {INDEX} names {absent[0]}, which is missing; get it again")
        return found
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise Failed(f"{folder} holds no *.safetensors; older formats run code when they are read, convert them first")
    return {name: path for path in files for name in opened(path).keys()}  # noqa: SIM118 not a dictionary


def opened(path: Path):
    """A safetensors file, of which only the table of contents is read; Failed when it is truncated or not one."""
    try:
        return safetensors.safe_open(path, framework="pt")
    except (OSError, safetensors.SafetensorError) as error:
        raise Failed(f"{path} is a damaged file ({' '.join(str(error).split())[:160]}); get it again") from error


def register(model: nn.Module, places: dict[str, tuple[Path, str]]) -> None:
    """places: {parameter of the model: (file, tensor in it)}. Read later, wherever an adapter has moved the layer by then."""
    owners = {name: name.rpartition(".")[::2] for name in places}
    model.unread = {(model.get_submodule(owner), key): places[name] for name, (owner, key) in owners.items()}


def load(model: nn.Module, device: str) -> int:
    """Give the model, in place, the weights that were noted, in the dtypes it has; returns the bytes asked of files.

    Collective where several processes run: Failed on all of them, in the same words, when one cannot read.
    """
    noted, asked = model.__dict__.pop("unread", {}), 0
    holders: dict[int, list] = {}  # two layers share a tied weight
    for module in model.modules():
        for key, parameter in module._parameters.items():
            holders.setdefault(id(parameter), []).append((module, key))
    present, files = set(model.modules()), {}
    for (module, key), (path, name) in noted.items():
        if module in present:  # a head may have been replaced
            files.setdefault(path, []).append((module._parameters[key], name))
    with distributed.together():
        for path, wanted in files.items():
            file = opened(path)
            for old, name in wanted:
                values = rows(file, name, old, path)
                asked += values.nbytes
                new = placed(values.to(device, old.dtype, copy=True), old)
                for module, key in holders[id(old)]:
                    module._parameters[key] = new
    return asked


def rows(file, name: str, old: Tensor, path: Path) -> Tensor:
    """What this process keeps of a tensor in a file, where `old` stands now; a view of the file."""
    try:
        held = file.get_slice(name)
        shape, kind = tuple(held.get_shape()), held.get_dtype()
        if shape != tuple(old.shape) or kind not in ("F64", "F32", "F16", "BF16"):
            raise Failed(f"{path}: {name} is {kind} {list(shape)}, the model needs numbers {list(old.shape)}")
        shard = shard_of(old)
        if shard is None:
            return file.get_tensor(name)
        if shard.numel == 0:  # more processes than rows
            return torch.empty(old.to_local().shape)
        [box] = shard.boxes
        return held[tuple(slice(start, start + length) for start, length in zip(box.start, box.lengths))]
    except (OSError, safetensors.SafetensorError) as error:
        raise Failed(f"{path}: cannot read {name} ({' '.join(str(error).split())[:160]}); get it again") from error


def placed(values: Tensor, old: nn.Parameter) -> nn.Parameter:
    """This process's values as a parameter of the kind of the old one."""
    if shard_of(old) is not None:
        from torch.distributed.tensor import DTensor

        mesh, shape, stride = old.device_mesh, old.shape, old.stride()
        values = DTensor.from_local(values, mesh, old.placements, run_check=False, shape=shape, stride=stride)
    return nn.Parameter(values, requires_grad=old.requires_grad)
