"""Whether a tier's experiments could start: data, weights, tokenizers, access, disk and programs, before any queue time.

Nothing is downloaded. What is not here yet is asked for at its source: a client on the PATH, a host that answers, a
token where access is gated. What cannot run as published, whatever one installs, stands in the experiment's file
(`cannot:`) and is printed too.
"""

import functools
import importlib.util
import os
import shutil
import socket
from pathlib import Path
from urllib.parse import urlparse

from lowmem import estimate, experiments, fetch, plan
from lowmem.files import read_yaml

CLIENTS = {"npm": "npm", "apt": "apt-get", "pip": None}  # pip comes with Python
HUB = "huggingface.co"
TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def check(root: Path, tier: str, options: dict, names: list[str] | None = None) -> int:
    """Print a row per experiment and what each lacks; 1 when one could not start, else 0."""
    jobs = plan.jobs(root, tier, options, names)
    lacking: dict[str, list[str]] = {}
    print(f"{'experiment':<24}{'runs':>6}{'GPUs':>6}{'longest':>10}  ready")
    for name in sorted({job["experiment"] for job in jobs.values()}):
        own = {key: job for key, job in jobs.items() if job["experiment"] == name}
        needs = {need for job in own.values() for need in of_job(job)}
        problems = sorted({problem for need in needs if (problem := lacks(root, *need))})
        runs = sum(len(job["runs"]) for job in own.values())
        longest = estimate.duration(max(60 * job["minutes"] for job in own.values()))
        gpus = max(job["gpus"] for job in own.values())
        print(f"{name:<24}{runs:>6}{gpus:>6}{longest:>10}  {'no' if problems else 'yes'}")
        for problem in problems:
            print(f"    missing: {problem}")
            lacking.setdefault(problem, []).append(name)
        for text in experiments.load_experiment(root, name).get("cannot", []):
            print(f"    not as published: {text}")
    wanted, free = needed_bytes(root, jobs), shutil.disk_usage(root).free
    print(
        f"downloads: {estimate.size(wanted)} known, and about three times as much prepared; free: {estimate.size(free)}"
    )
    if 4 * wanted > free:
        lacking["disk"] = ["all"]
        print(
            "    missing: disk space for the downloads and what is prepared from them; free some, or link data/ elsewhere"
        )
    stuck = sorted({name for names in lacking.values() for name in names} - {"all"})
    print(f"{len(stuck)} experiments could not start: {', '.join(stuck)}" if stuck else "every experiment could start")
    return int(bool(lacking))


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
    if name in read_yaml(root / "data/sources.yaml"):
        return of_dataset(root, name, "package")
    folder = Path(name).expanduser()
    if any((place / "config.json").is_file() for place in (folder, root / folder)):
        return None
    if name.startswith((".", "/", "~")):
        return f"weights {name}: no folder with a config.json there"
    if importlib.util.find_spec("huggingface_hub") is None:
        return "the package huggingface_hub is not installed: pip install 'lowmem[hub]'"
    if not answers(HUB):
        return f"weights {name}: {HUB} does not answer from here; name a local folder"
    return gated(name.split("/")[0] == "meta-llama", name)


def gated(is_gated: bool | None, name: str) -> str | None:
    """Why a gated repository could not be had, or None."""
    login = Path(os.environ.get("HF_HOME", "~/.cache/huggingface"), "token").expanduser()
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


def needed_bytes(root: Path, jobs: dict[str, dict]) -> int:
    """Known bytes of the downloads that are not here yet."""
    known = read_yaml(root / "data/sources.yaml")
    wanted = {(data["dataset"], data["source"]) for data in plan.datasets(jobs).values()}
    missing = [pair for pair in wanted if not (fetch.raw_folder(root, *pair) / "fetched.json").is_file()]
    return sum(estimate.download_bytes(known[dataset], source) or 0 for dataset, source in missing)
