"""Run a function on several processes joined by gloo, with a hard end: no test may hang."""

import datetime
import gc
import multiprocessing
import re
import tempfile
import time
import traceback
from pathlib import Path

PRELOAD = [
    "torch",
    "torch.distributed.fsdp",
    "torch.distributed.tensor.parallel",
    "torch.distributed.checkpoint",
    "torch._dynamo",  # fully_shard loads it: two seconds in each process
    "zoo",
]
COLLECTIVE_TIMEOUT = 20


def outcomes(
    function, world: int, *arguments, timeout: float = 120, patience: float = COLLECTIVE_TIMEOUT
) -> list[tuple[str, object]]:
    """[("ok", result) | ("error", "Type: message") | ("dead", exit code)] by rank; kills what is left at the end.

    timeout: seconds for everything. patience: seconds until a rank gives up waiting for the others.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    with tempfile.TemporaryDirectory() as folder:
        pipes, processes = [], []
        for rank in range(world):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(
                target=_enter,
                args=(function, rank, world, str(Path(folder) / "store"), patience, theirs, arguments),
                daemon=True,
            )
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        end = time.monotonic() + timeout
        found = []
        for pipe, process in zip(pipes, processes):
            try:
                if not pipe.poll(max(end - time.monotonic(), 0)):
                    found.append(("hang", f"nothing within {timeout} s"))
                    continue
                found.append(pipe.recv())
            except EOFError:
                process.join(10)
                found.append(("dead", process.exitcode))
        for process in processes:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()
        return found


def launch(function, world: int, *arguments, **limits) -> list:
    """Results by rank of function(rank, world, *arguments); AssertionError with the first rank's trouble."""
    found = outcomes(function, world, *arguments, **limits)
    for rank, (kind, value) in enumerate(found):
        assert kind == "ok", f"rank {rank} of {world}: {kind}: {value}\n(all: {[k for k, _ in found]})"
    return [value for _, value in found]


def refusals(function, messages: dict[str, str], *arguments) -> None:
    """Assert on both of two ranks that function(rank, world, *arguments, case) returns text matching messages[case]."""
    for found in launch(_each, 2, function, list(messages), *arguments):
        for case, message in messages.items():
            assert re.search(message, found[case], re.DOTALL), (case, found[case])


def _each(rank: int, world: int, function, cases: list[str], *arguments) -> dict[str, str]:
    return {case: function(rank, world, *arguments, case) for case in cases}


def _enter(function, rank: int, world: int, store: str, patience: float, pipe, arguments) -> None:
    import torch
    import torch.distributed as dist

    gc.freeze()  # what the fork brought along is not garbage; looking through it takes a third of a second
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{store}",
            rank=rank,
            world_size=world,
            timeout=datetime.timedelta(seconds=patience),
        )
        result = ("ok", function(rank, world, *arguments))
    except BaseException as error:
        result = ("error", f"{type(error).__name__}: {error}\n{traceback.format_exc(limit=-6)}")
    pipe.send(result)
    pipe.close()
    if dist.is_initialized():
        dist.destroy_process_group()


def collectives(function):
    """Call function and count collectives by name, {name: calls}."""
    import torch.distributed as dist

    counts, originals = {}, {}
    names = ("all_reduce", "all_gather", "all_gather_into_tensor", "broadcast", "reduce_scatter_tensor", "barrier")

    def counting(name):
        def call(*a, **k):
            counts[name] = counts.get(name, 0) + 1
            return originals[name](*a, **k)

        return call

    for name in names:
        originals[name] = getattr(dist, name)
        setattr(dist, name, counting(name))
    try:
        function()
    finally:
        for name in names:
            setattr(dist, name, originals[name])
    return counts
