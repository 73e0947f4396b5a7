"""Whether a tier's experiments could start: data, weights, tokenizers, access, disk and programs, before any queue time.

Nothing is downloaded. What is not here yet is asked for at its source: a client on the PATH, a host that answers, a
token where access is gated. What cannot run as published, whatever one installs, is listed in the experiment's file
(`cannot:`) and is printed too.
"""

import functools
import importlib.util
import os
import shutil
import socket
from pathlib import Path
from urllib.parse import urlparse

from lowmem import progress
from lowmem.data import fetch
from lowmem.files import safe_names
from lowmem.pipeline import estimate, experiments, planning

CLIENTS = {"npm": "npm", "apt": "apt-get", "pip": None}  # pip comes with Python
HUB = "huggingface.co"
# Moments as large as the weights that a checkpoint holds; of rules that are not named here: two.
MOMENTS = {**dict.fromkeys(("sgd", "lomo", "adalomo", "adafactor", "sm3"), 0), "adam_mini": 1, "lion": 1}
TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def check(root: Path, tier: str, options: dict, names: list[str] | None = None) -> int:
    """Print a row per experiment, what it needs and what of that is lacking; 1 when one could not start, else 0."""
    jobs = planning.jobs(root, tier, options, names)
    seconds = expected(root, tier, jobs)
    lacking: dict[str, list[str]] = {}
    print(f"{'experiment':<24}{'runs':>6}{'GPUs':>6}{'longest':>10}{'limit':>10}{'all':>10}  ready")
    for name in sorted({job["experiment"] for job in jobs.values()}):
        own = {key: job for key, job in jobs.items() if job["experiment"] == name}
        needs = {need for job in own.values() for need in of_job(job)}
        problems = sorted({problem for need in needs if (problem := lacks(root, *need))})
        runs = sum(len(job["runs"]) for job in own.values())
        times = [seconds[key] for key in own], [60 * job["minutes"] for job in own.values()]
        shown = "".join(f"{progress.duration(t):>10}" for t in (max(times[0]), max(times[1]), sum(times[0])))
        gpus = max(job["gpus"] for job in own.values())
        print(f"{name:<24}{runs:>6}{gpus:>6}{shown}  {'no' if problems else 'yes'}")
        if needs:
            print(f"    needs: {', '.join(sorted(words(root, *need) for need in needs))}")
        for problem in problems:
            print(f"    missing: {problem}")
            lacking.setdefault(problem, []).append(name)
        cut = sum(took > limit for took, limit in zip(*times, strict=True))
        if cut:
            print(f"    {cut} of its jobs should outlast their limit: started again, they go on from their checkpoint")
        for text in experiments.load_experiment(root, name).get("cannot", []):
            print(f"    not as published: {text}")
    print("longest, all: what its longest job should take, and all in turn; limit: what a job asks the queue for")
    lacking |= {problem: ["all"] for problem in disk(root, jobs)}
    stuck = sorted({name for names in lacking.values() for name in names} - {"all"})
    print(f"{len(stuck)} experiments could not start: {', '.join(stuck)}" if stuck else "every experiment could start")
    return int(bool(lacking))


def expected(root: Path, tier: str, jobs: dict[str, dict]) -> dict[str, float]:
    """Seconds that each job should take, as `lowmem plan` says."""
    speeds = experiments.load_tier(root, tier)["estimate"]
    known = estimate.costs(root), estimate.costs(root, modelled=True)
    return {key: sum(estimate.cost(run, speeds, *known)[0] for run in job["runs"]) for key, job in jobs.items()}


def words(root: Path, kind: str, name: str, source: str = "package") -> str:
    """One need for a reader, with its size where that is known."""
    if kind == "weights":
        return f"weights {name} ({progress.size(weight_bytes(root, name))})"
    if kind == "tokenizer":
        return "tokenizer gpt2"
    count = estimate.dataset_bytes(root, name, source)
    return f"{name} ({source}, {progress.size(count)})"


def of_job(job: dict) -> set[tuple[str, ...]]:
    """What one job needs: ("data", dataset, source), ("tokenizer", dataset) and ("weights", name)."""
    needs = {("data", data["dataset"], data["source"]) for data in job["data"].values()}
    needs |= {("tokenizer", "gpt2_bpe") for data in job["data"].values() if data.get("tokenizer") == "gpt2"}
    stages = [stage for run in job["runs"] for stage in experiments.stages(run["config"])]
    weights = {(stage.get("model") or {}).get("pretrained") for stage in stages if not started(stage)} - {None}
    return needs | {("weights", name) for name in weights}


def lacks(root: Path, kind: str, name: str, source: str = "package") -> str | None:
    """Why something that a job needs could not be had, or None."""
    if kind == "weights":
        return of_weights(root, name)
    problem = of_dataset(root, name, source)
    return f"tokenizer gpt2: {problem}" if problem and kind == "tokenizer" else problem


def started(config: dict) -> bool:
    """Whether the weights that a run starts from are those of another run, which comes before it."""
    return isinstance((config.get("model") or {}).get("pretrained"), dict)


def of_dataset(root: Path, dataset: str, source: str) -> str | None:
    """Why a dataset could not be had, or None."""
    parts = fetch.parts(root, dataset)
    if parts != [dataset]:
        return next(filter(None, (of_dataset(root, part, source) for part in parts)), None)
    if (fetch.raw_folder(root, dataset, source) / "fetched.json").is_file():
        return None
    if source == "folder":
        return f"{dataset} from your files: lowmem fetch {dataset} --source folder --folder DIR"
    entry = fetch.dataset_entry(root, dataset)
    reasons = [reason for one in fetch.choose(entry, dataset, source, None) for reason in [of_source(one)]]
    if None in reasons:
        return None
    return f"{dataset} ({source}): {'; '.join(dict.fromkeys(reasons))}"


def of_source(source: dict) -> str | None:
    """Why one source of a dataset could not be asked, or None."""
    for kind, program in CLIENTS.items():
        if kind in source:
            return None if program is None or shutil.which(program) else f"{program} is not installed"
    if "url" in source:
        host = urlparse(source["url"]).hostname
        return None if answers(host) else f"{host} does not answer from here"
    if importlib.util.find_spec("datasets") is None:
        return "the package datasets is not installed: pip install 'lowmem[hub]'"
    if not answers(HUB):
        return f"{HUB} does not answer from here"
    return gated(source.get("gated"), source["hub"])


def of_weights(root: Path, name: str) -> str | None:
    """Why pretrained weights (a dataset of sources.yaml, a folder, or a hub repository) could not be had, or None."""
    if name in fetch.listed(root):
        return of_dataset(root, name, "package")
    folder = safe_names.at_home(name)
    if any((place / "config.json").is_file() for place in (folder, root / folder)):
        return None
    if name.startswith((".", "/", "~")):
        return f"weights {name}: no folder with a config.json there"
    if hub_cache(name).is_dir():
        return None
    if importlib.util.find_spec("huggingface_hub") is None:
        return "the package huggingface_hub is not installed: pip install 'lowmem[hub]'"
    if not answers(HUB):
        return f"weights {name}: {HUB} does not answer from here; name a local folder"
    return gated(name.split("/")[0] == "meta-llama", name)


def gated(is_gated: bool | None, name: str) -> str | None:
    """Why a gated repository could not be had, or None."""
    login = hub_home() / "token"
    if not is_gated or login.is_file() or any(os.environ.get(key) for key in TOKENS):
        return None
    return f"{name} is gated: accept its licence on its page, then `hf auth login` or set HF_TOKEN"


@functools.cache
def answers(host: str) -> bool:
    """Whether a host takes a TLS connection within three seconds."""
    try:
        socket.create_connection((host, 443), timeout=3).close()
    except OSError:
        return False
    return True


# -- disk --------------------------------------------------------------------------------------------------------------


def disk(root: Path, jobs: dict[str, dict]) -> list[str]:
    """Print what will be written and where; returns what does not fit."""
    sizes, problems = needed_bytes(root, jobs), []
    unknown = [name for name, count in sizes.items() if count is None]
    data = 4 * sum(count or 0 for count in sizes.values())  # as it comes, and about three times as much prepared
    own, weights = written_bytes(jobs), sum(missing_weights(root, jobs).values())
    free, free_cache = shutil.disk_usage(root).free, shutil.disk_usage(existing(hub_home())).free
    print(f"disk: {progress.size(data + own)} of data and checkpoints here, free {progress.size(free)}", end="; ")
    print(f"{progress.size(weights)} of weights into the hub's cache, free there {progress.size(free_cache)}")
    if unknown:
        print(f"    besides: {', '.join(unknown)}, whose size the source does not say")
    if data + own > free:
        problems.append("disk space for data and checkpoints; free some, or link data/ and results/ elsewhere")
    if weights > free_cache:
        problems.append("disk space for weights; free some, or set HF_HOME to a folder on another disk")
    for problem in problems:
        print(f"    missing: {problem}")
    return problems


def needed_bytes(root: Path, jobs: dict[str, dict]) -> dict[str, int | None]:
    """Bytes of each dataset that is not here yet; None where its source does not say."""
    known, named = fetch.listed(root), planning.datasets(jobs).values()
    wanted = sorted({(part, data["source"]) for data in named for part in fetch.parts(root, data["dataset"])})
    missing = [pair for pair in wanted if not (fetch.raw_folder(root, *pair) / "fetched.json").is_file()]
    return {dataset: estimate.download_bytes(known[dataset], source) for dataset, source in missing}


def missing_weights(root: Path, jobs: dict[str, dict]) -> dict[str, int]:
    """Bytes of the hub's weights that are not here yet."""
    named = {need[1] for job in jobs.values() for need in of_job(job) if need[0] == "weights"}
    known = fetch.listed(root)
    absent = [name for name in named - known.keys() if not hub_cache(name).is_dir() and not Path(name).is_dir()]
    return {name: weight_bytes(root, name) or 0 for name in absent}


def weight_bytes(root: Path, name: str) -> int | None:
    """A dataset's as sources.yaml says; a hub's by the size in its name, two bytes a weight; None where it has none."""
    known = fetch.listed(root)
    if name in known:
        return estimate.download_bytes(known[name], "package")
    return 2 * estimate.parameters({"pretrained": name}) or None


def written_bytes(jobs: dict[str, dict]) -> int:
    """What runs write: the largest checkpoint and the one that replaces it, and the weights of earlier trainings."""
    configs = [run["config"] for job in jobs.values() for run in job["runs"] if run["config"].get("train")]
    saved = [checkpoint_bytes(config) for config in configs if config["train"].get("checkpoint_every")]
    earlier = {str(stage): stage["model"] for config in configs for stage in list(experiments.stages(config))[1:]}
    return 2 * max(saved, default=0) + sum(stored(model) for model in earlier.values())


def checkpoint_bytes(config: dict) -> int:
    """Weights, and the moments of those that are trained, in the type of the weights."""
    model = config.get("model") or {}
    adapter = model.get("adapter")
    frozen = bool(adapter) and adapter.get("freeze", True)
    return stored(model) * (1 + (0 if frozen else MOMENTS.get(config["optimizer"].get("name"), 2)))


def stored(model: dict) -> int:
    """Bytes of a model's weights in the type it keeps them in."""
    return estimate.parameters(model) * (2 if model.get("dtype") in ("bfloat16", "float16") else 4)


def hub_home() -> Path:
    """Where the hub's clients keep what they download."""
    return safe_names.at_home(os.environ.get("HF_HOME", "~/.cache/huggingface"))


def hub_cache(name: str) -> Path:
    """Where the weights of a hub repository are kept, once they are here."""
    return hub_home() / "hub" / f"models--{name.replace('/', '--')}" / "snapshots"


def existing(path: Path) -> Path:
    """The path, or its nearest parent that is there."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())
