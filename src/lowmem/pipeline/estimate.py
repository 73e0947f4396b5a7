"""The printed plan: runs, downloads and time of a tier, before anything runs.

Time comes from data/published/costs.json: measured, where records were at hand, or from the performance model of
memory/throughput.py for GPU tiers (`lowmem plan --all` writes both). Else a simple formula (`run_seconds`) with the
speeds that the tier's file assumes. The text says which.
"""

import re
from datetime import datetime
from pathlib import Path

from lowmem import progress
from lowmem.data import fetch
from lowmem.data.fetch import SOURCES, raw_folder
from lowmem.errors import Failed
from lowmem.files import read_json, write_json
from lowmem.pipeline import experiments, planning, record

COSTS = "data/published/costs.json"
DRAWING = 1.0  # seconds that a table or figure takes: 0.3 and 0.8 to start Python and matplotlib, and its records
EXPECTED = "expected.json"  # in results/<tier>: {job: seconds}, written when a pipeline starts


def parameters(model: dict) -> int:
    """About how many parameters a GPT-2 or Llama has: as a checkpoint's or size's name says (llama-7b), else 12 width^2 per
    layer and one embedding per token."""
    if isinstance(model.get("pretrained"), dict):  # another run's weights
        return parameters(model["pretrained"].get("model", {}))
    name = f"{model.get('size') or ''} {model.get('pretrained') or ''}"
    named = re.search(r"(\d+(?:\.\d+)?)([bm])\b", name.replace(" smollm2", " 135m"))  # sources.yaml has one size of it
    if named:
        return int(float(named[1]) * {"b": 1e9, "m": 1e6}[named[2]])
    layers = model.get("n_layer", 0)
    width = model.get("n_embd", 0)
    return 12 * layers * width * width + model.get("vocab_size", 256) * width


def training_flops(config: dict) -> float:
    """Floating point operations of a training run with its evaluations.

    6 operations per parameter and token for forward and backward (Kaplan et al., arXiv 2001.08361, section 2.1),
    12 n_layer n_embd seq_len per token for attention (Narayanan et al., arXiv 2104.04473, section 5.1, which counts
    forward and backward), and a third of that for the tokens of an evaluation.
    """
    train, model = config["train"], config.get("model", {})
    length = (config.get("measure") or {}).get("longest") or train.get("seq_len", 1)
    per_token = 6 * parameters(model) + 12 * model.get("n_layer", 0) * model.get("n_embd", 0) * length
    tokens = train["steps"] * train["batch_size"] * length
    micro_batch = train.get("micro_batch_size", train["batch_size"])
    evaluations = train["steps"] // train["eval_every"] + 1 if train.get("eval_every") else 0
    evaluated = evaluations * train.get("eval_batches", 1) * micro_batch * length
    return per_token * (tokens + evaluated / 3)


def run_seconds(run: dict, speeds: dict) -> float:
    """Estimated seconds of one run; speeds: the tier file's `estimate`."""
    config = run["config"]
    if "train" not in config:
        return speeds["seconds_per_measure"]
    devices, bf16 = max(1, run["resources"]["gpus"]), config["train"].get("precision") == "bf16"
    rate = speeds.get("bf16_flops_per_second", speeds["flops_per_second"]) if bf16 else speeds["flops_per_second"]
    passes = config["train"]["steps"] + sampled_tokens(config)
    counted = run["resources"].get("forward_flops")  # of models whose size does not follow from their name
    examples = config["train"]["steps"] * config["train"]["batch_size"]
    flops = 3 * counted * examples if counted else training_flops(config)  # backward counts twice
    return flops / (rate * devices) + passes * speeds["seconds_per_step"]


def sampled_tokens(config: dict) -> int:
    """How often the model of a ReMax run is called for one more token of every answer of a batch, evaluations included."""
    asked, train = config.get("measure") or {}, config["train"]
    if "answer_tokens" not in asked or config.get("task") != "remax":
        return 0
    batches = -(-asked.get("eval_prompts", 500) // asked.get("eval_batch", 64))
    evaluations = train["steps"] // train["eval_every"] + 1 if train.get("eval_every") else 1
    return asked["answer_tokens"] * (train["steps"] + evaluations * batches)


def costs(root: Path, modelled: bool = False) -> dict[str, float]:
    """{tier/experiment/variant: seconds of one run}, as measured, or as the performance model says.

    In the file a measured time is a number, a modelled one {"seconds": number, "gpu": kind}.
    """
    loaded = read_json(root / COSTS) if (root / COSTS).is_file() else {}
    if not isinstance(loaded, dict):
        raise Failed(f"{root / COSTS} holds no times by run; restore it, e.g. with git checkout")
    if modelled:
        return {key: value["seconds"] for key, value in loaded.items() if isinstance(value, dict)}
    return {key: value for key, value in loaded.items() if not isinstance(value, dict)}


def save_costs(root: Path, tier: str) -> None:
    """Add to costs.json what the records of a tier took, the median over seeds."""
    times: dict[str, list[float]] = {}
    for path in sorted((root / "results" / tier).glob("*/*/seed*/record.json")):
        made = record.load(path.parent)
        if made.get("status") == "done" and not made.get("resumed_from"):
            ended, started = (datetime.fromisoformat(made[key]) for key in ("ended", "started"))
            key = f"{tier}/{made['experiment']}/{made['variant']}"
            times.setdefault(key, []).append((ended - started).total_seconds())
    medians = {key: round(sorted(values)[len(values) // 2], 1) for key, values in times.items()}
    loaded = read_json(root / COSTS) if (root / COSTS).is_file() else {}
    write_json(root / COSTS, dict(sorted({**loaded, **medians}.items())))


def cost(run: dict, speeds: dict, measured: dict, modelled: dict) -> tuple[float, str]:
    """(seconds, where that is known from) of one run."""
    key = f"{run['tier']}/{run['experiment']}/{run['variant']}"
    for found, source in ((measured, "measured"), (modelled, "modelled")):
        if key in found:
            return found[key], source
    return run_seconds(run, speeds), "estimate"


def opening(root: Path, experiment: str, runs: list[dict]) -> str:
    """'gpt2_sizes: Loss of Adam-mini and AdamW ...; 9 of 36 runs to make, about 3 min'; runs: those of a job."""
    speeds, measured = experiments.load_tier(root, runs[0]["tier"])["estimate"], costs(root)
    modelled = costs(root, modelled=True)
    left = [run for run in runs if not record.reusable(root, run)]
    seconds = sum(cost(run, speeds, measured, modelled)[0] for run in left)
    made = f"{len(left)} of {len(runs)} runs to make" + (f", about {progress.duration(seconds)}" if left else "")
    return f"{experiment}: {experiments.load_experiment(root, experiment)['title']}; {made}"


def expect(root: Path, tier: str, jobs: dict) -> None:
    """Write what each job of a pipeline that starts should take, so that `time_left` needs no configuration."""
    speeds, measured, modelled = experiments.load_tier(root, tier)["estimate"], costs(root), costs(root, modelled=True)
    seconds = {
        name: speeds["seconds_per_job"] + sum(cost(run, speeds, measured, modelled)[0] for run in job["runs"])
        for name, job in jobs.items()
    }
    count = len(planning.exhibits(root))
    known = {"jobs_at_once": speeds["jobs_at_once"], "seconds": seconds, "drawings": count}
    write_json(root / "results" / tier / EXPECTED, known)


def time_left(root: Path, tier: str) -> str | None:
    """'whole tier laptop: about 12 min of runs left in 9 of 34 jobs, then 4 min of drawing'; None without `expect`."""
    path = root / "results" / tier / EXPECTED
    if not path.is_file():
        return None
    known = read_json(path)
    left = {name: s for name, s in known["seconds"].items() if not (path.parent / name / "done.json").is_file()}
    drawing = f"{progress.duration(known['drawings'] * DRAWING / known['jobs_at_once'])} of drawing"
    if not left:
        return f"whole tier {tier}: all runs are made; about {drawing} left"
    seconds = max(sum(left.values()) / known["jobs_at_once"], *left.values())
    jobs = f"{len(left)} of {len(known['seconds'])} jobs"
    return f"whole tier {tier}: about {progress.duration(seconds)} of runs left in {jobs}, then {drawing}"


def show(root: Path, tier: str, options: dict) -> None:
    """Print the plan of a tier: a row per experiment, then downloads, then the time for everything left."""
    jobs = planning.jobs(root, tier, options)
    loaded = experiments.load_tier(root, tier)
    speeds, measured, modelled = loaded["estimate"], costs(root), costs(root, modelled=True)
    print(f"tier {tier}: {loaded['about']}")
    print(f"{'experiment':<34}{'jobs':>6}{'runs':>6}{'valid':>7}{'gpus':>6}{'left':>10}  from")
    left = longest = 0.0
    for name in sorted({job["experiment"] for job in jobs.values()}):
        own = [job for job in jobs.values() if job["experiment"] == name]
        runs = [run for job in own for run in job["runs"]]
        valid = {run["id"] for run in runs if record.reusable(root, run)}
        seconds, sources = 0.0, set()
        for job in own:
            in_job = 0.0
            for run in job["runs"]:
                if run["id"] in valid:
                    continue
                known, source = cost(run, speeds, measured, modelled)
                sources.add(source)
                in_job += known
            if in_job:
                in_job += speeds["seconds_per_job"]
            seconds, longest = seconds + in_job, max(longest, in_job)
        left += seconds
        gpus = max(job["gpus"] for job in own)
        row = f"{name:<34}{len(own):>6}{len(runs):>6}{len(valid):>7}{gpus:>6}{progress.duration(seconds):>10}"
        print(f"{row}  {'+'.join(sorted(sources)) or '-'}")
    show_downloads(root, jobs)
    at_once = speeds["jobs_at_once"]
    total = progress.duration(max(left / at_once, longest))
    print(f"time for what is left: about {total}, {at_once} job(s) at once; downloads come on top")
    rate = f"{speeds['flops_per_second']:.2g}"
    print(f"'estimate' assumes {rate} operations/s per device (workflow/config/tiers/{tier}.yaml)")
    if "gpu" in speeds:
        print(f"'modelled' is a roofline model of the {speeds['gpu']} (src/lowmem/memory), kept by lowmem plan --all")


def show_downloads(root: Path, jobs: dict) -> None:
    """Print what has to be fetched, with bytes from data/sources.yaml."""
    sources = fetch.listed(root)
    named = {(data["dataset"], data["source"]) for data in planning.datasets(jobs).values()}
    wanted = {(part, source) for dataset, source in named for part in fetch.parts(root, dataset)}
    for dataset, source in sorted(wanted):
        count = download_bytes(sources[dataset], source)
        here = (raw_folder(root, dataset, source) / "fetched.json").is_file()
        print(f"download {dataset} ({source}): {'already here' if here else progress.size(count)}")
    if not wanted:
        print("download: nothing")


def dataset_bytes(root: Path, dataset: str, source: str) -> int | None:
    """Bytes of a dataset's downloads, of all its parts; None when one source does not say."""
    counts = [download_bytes(fetch.dataset_entry(root, part), source) for part in fetch.parts(root, dataset)]
    return None if None in counts else sum(counts)


def download_bytes(entry: dict, source: str) -> int | None:
    """Bytes of the first source of data/sources.yaml that `source` would take; None when it does not say."""
    for candidate in entry["sources"]:
        if any(kind in candidate for kind in SOURCES[source]):
            counts = [pin["bytes"] for pin in candidate.get("files", {}).values()] or [candidate.get("bytes")]
            return None if None in counts else sum(counts)
    return None
