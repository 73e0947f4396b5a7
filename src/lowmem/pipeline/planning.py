"""What a tier needs: exhibits, jobs, datasets, code files. Standard library and yaml only: Snakemake parses it.

A job is what Snakemake starts as one process: all runs of an experiment (tier key `job: experiment`, where starting a
process costs more than many a run), one variant with all its seeds (`job: variant`), or one variant with one seed (`job:
run`, so that a cluster runs them side by side).
"""

import ast
import functools
import hashlib
from pathlib import Path

from lowmem import provenance
from lowmem.data import superglue_sources
from lowmem.data.fetch import SOURCES, listed, prepared_folder, raw_folder
from lowmem.data.fetch import parts as fetch_parts
from lowmem.data.fetch import script as fetch_script
from lowmem.errors import Misuse, nearest, refuse_unknown
from lowmem.files import read_json, read_yaml, safe_names, sha256, write_json
from lowmem.pipeline import experiments, prerequisites, record

STARTING = 10  # minutes that a job gets to start in: a busy node of a cluster takes its time
NAMES_FILE = ("starts", "questions")  # keys of `measure`
SHARED = (
    *provenance.ROUTING,
    "lowmem.pipeline.planning",
)  # used by everything: their own text counts, what they import does not


def settings(root: Path, config: dict) -> tuple[str, dict[str, str]]:
    """Split a configuration into (tier, {dataset: source}); Misuse names what is unknown and the nearest known key.

    config: workflow/config/config.yaml with what `--config` adds: switches of the schema, and dataset names.
    """
    schema = read_yaml(root / "workflow/schemas/config.schema.yaml")
    switches = {key: value for key, value in parse_booleans(config).items() if key in schema["properties"]}
    experiments.check(root, switches, "config", Path("workflow/config/config.yaml"))
    named = {key: value for key, value in config.items() if key not in switches}
    wanted = (switches.get(name) for name in ("superglue", "superglue_dir", "bigbench"))
    options = {**superglue_sources.options(*wanted), **named}
    if switches.get("hh_rlhf_dir"):
        if not safe_names.at_home(switches["hh_rlhf_dir"]).is_dir():
            raise Misuse(
                f"hh_rlhf_dir={switches['hh_rlhf_dir']} is not a folder; it holds train.jsonl.gz, test.jsonl.gz or both"
            )
        options["hh_rlhf"] = "folder"
    datasets = dataset_names(root) if options else set()
    for name, source in options.items():
        if name not in datasets:
            raise Misuse(f"--config: unknown key {name!r}{nearest(name, {*schema['properties'], *datasets})}")
        if not isinstance(source, str) or source not in SOURCES:
            raise Misuse(f"--config {name}={source}: unknown source{nearest(source, SOURCES)}")
    of_tier = experiments.load_tier(root, switches["tier"])  # an unknown tier is said before anything else is read
    if "bigbench" in options and not any("opt_in" in entry for entry in of_tier.get("data", {}).values()):
        raise Misuse(f"bigbench=true: tier {switches['tier']} runs the published tasks alone; leave it out")
    return switches["tier"], options


def parse_booleans(config: dict) -> dict:
    """The configuration with "true" and "false", as a command line gives them, as booleans."""
    booleans = {"true": True, "false": False}
    return {key: booleans.get(value, value) if isinstance(value, str) else value for key, value in config.items()}


def dataset_names(root: Path) -> set[str]:
    """Every dataset that data/sources.yaml, an experiment or a tier mentions: what an option may name."""
    names = set(listed(root))
    for tier in experiments.tier_names(root):
        names |= set(experiments.load_tier(root, tier).get("data", {}))
    return names


def exhibits(root: Path) -> dict[str, dict]:
    """{id: header} of every src/lowmem/exhibits/<id>.py in report order, read without importing the file.

    The header is the literal dictionary EXHIBIT; `id` and `paper` decide the order together with `order`.
    """
    found = {}
    for path in sorted((root / "src/lowmem/exhibits").glob("[a-z]*.py")):
        header = dict(read_header(path, path.read_text(encoding="utf-8")))
        if header.get("id") != path.stem:
            raise Misuse(f"{path}: EXHIBIT['id'] is {header.get('id')!r}; it must be the file's name")
        if header.get("kind") not in ("table", "figure"):
            raise Misuse(f"{path}: EXHIBIT['kind'] is {header.get('kind')!r}; it must be 'table' or 'figure'")
        found[path.stem] = header
    papers = {"adam_mini": 0, "lomo": 1, "adalomo": 2, "extra": 3}
    return dict(sorted(found.items(), key=lambda item: (papers.get(item[1]["paper"], 9), item[1]["order"])))


@functools.cache
def read_header(path: Path, text: str) -> dict:
    """The literal after `EXHIBIT =` in the text of a Python file."""
    try:
        for node in ast.parse(text).body:
            if isinstance(node, ast.Assign) and [getattr(t, "id", None) for t in node.targets] == ["EXHIBIT"]:
                return ast.literal_eval(node.value)
    except (SyntaxError, ValueError) as error:
        raise Misuse(f"{path}: EXHIBIT cannot be read: {error}; it must be a literal dictionary") from error
    raise Misuse(f"{path}: no EXHIBIT; an exhibit opens with EXHIBIT = {{...}} (see CONTRIBUTING.md)")


def exhibit_files(tier: str, header: dict) -> list[str]:
    """Outputs of one exhibit, relative to the root: picture or table, its numbers, its caption and values."""
    folder, ending = ("figures", "svg") if header["kind"] == "figure" else ("tables", "md")
    return [f"reports/{tier}/{folder}/{header['id']}.{end}" for end in (ending, "csv", "json")]


def shown_by(header: dict, tier: str) -> list[str]:
    """The experiments of an exhibit; `also` holds those for which only one tier has the machine: {tier: [experiment]}."""
    return [*header["experiments"], *header.get("also", {}).get(tier, [])]


def published_files(header: dict) -> list[str]:
    """The file with published values that an exhibit names: Adam-mini's, LOMO's with AdaLomo's, or those of others."""
    name = header.get("published")
    if not name:
        return []
    paper = name.split(".")[0]
    return [f"data/published/{'lomo' if paper == 'adalomo' else paper}.yaml"]


def archived_files(root: Path, header: dict) -> list[str]:
    """Kept records that an exhibit shows beside its own runs (header key `archived`: ["tier/experiment"])."""
    found = [f"data/records/{name}.zip" for name in header.get("archived", [])]
    return [path for path in found if (root / path).is_file()]


def jobs(root: Path, tier: str, options: dict, names: list[str] | None = None) -> dict[str, dict]:
    """{job name: job} of the experiments `names` (default: those that an exhibit shows).

    An experiment on several datasets is one job for each of them where the tier says `job: experiment`.
    A job is {experiment, done, after, arguments, hashes, runs, data, code, launcher, nodes, threads, mem_mb, gpus, minutes};
    its name is the folder of its done.json below results/<tier>.
    """
    if names is None:
        names = sorted({name for header in exhibits(root).values() for name in shown_by(header, tier)})
    of_tier = experiments.load_tier(root, tier)
    per_node = of_tier.get("gpus_per_node")
    known = listed(root)
    found = {}
    for experiment, (runs, wanted) in with_earlier(root, tier, options, names, of_tier["job"] == "run").items():
        plain = " ".join([f"--experiment {experiment} --tier {tier}", *own_options(runs, options)])
        for name, (group, narrowed) in grouped(experiment, wanted, of_tier["job"]).items():
            found[name] = make_job(root, tier, name, group, known, per_node)
            found[name] |= {"experiment": experiment, "arguments": plain + narrowed}
        for run in prerequisites.unnamed(wanted):
            if run["id"] not in found:
                found[run["id"]] = make_job(root, tier, run["id"], [run], known, per_node)
                found[run["id"]] |= {"experiment": experiment, "arguments": f"{plain} --variant {run['variant']}"}
    return in_order(found)


def with_earlier(root: Path, tier: str, options: dict, names: list[str], per_run: bool) -> dict[str, tuple[list, list]]:
    """{experiment: (all its runs, those to do)} of `names` and of the experiments that their runs start from.

    Of an experiment that was not asked for, only the runs that are needed, where each is a job of its own.
    """
    found: dict[str, tuple[list, list]] = {}
    waiting = list(names)
    for name in waiting:  # grows while it is iterated
        runs = wanted = experiments.runs(root, name, tier, options)
        if per_run and name not in names:
            needed = {run["id"] for one in names for run in prerequisites.every(found[one][1])}
            wanted = [run for run in runs if run["id"] in needed]
        found[name] = runs, wanted
        waiting += [one for one in prerequisites.experiments_of(wanted) if one not in waiting]
    return found


def in_order(jobs: dict[str, dict]) -> dict[str, dict]:
    """The jobs, each with `after`: what must be done before it, since its runs start from runs of other jobs."""
    done_file = {run["id"]: job["done"] for job in jobs.values() for run in job["runs"]}
    for job in jobs.values():
        before = {done_file[one["id"]] for run in job["runs"] for one in prerequisites.of(run).values()}
        job["after"] = sorted(before - {job["done"]})
    return jobs


def dataset_of(run: dict) -> str | None:
    """The dataset that a run reads; None without one."""
    return (run["config"].get("data") or {}).get("dataset")


def grouped(experiment: str, runs: list[dict], kind: str) -> dict[str, tuple[list[dict], str]]:
    """{job name: (its runs, the arguments that choose them)}; kind: the tier's `job`."""
    if kind == "run":
        return {run["id"]: ([run], f" --variant {run['variant']} --seed {run['seed']}") for run in runs}
    if kind == "variant":
        variants = dict.fromkeys(run["variant"] for run in runs)
        chosen = {variant: [run for run in runs if run["variant"] == variant] for variant in variants}
        return {f"{experiment}/{variant}": (group, f" --variant {variant}") for variant, group in chosen.items()}
    groups = by_dataset(runs)
    if len(groups) == 1:
        return {experiment: (runs, "")}
    return {f"{experiment}/{dataset}": (group, f" --dataset {dataset}") for dataset, group in groups.items()}


def by_dataset(runs: list[dict]) -> dict[str | None, list[dict]]:
    """Runs that read the same dataset go into one job: where one cannot be had, the others still run."""
    groups: dict[str | None, list[dict]] = {}
    for run in runs:
        groups.setdefault(dataset_of(run), []).append(run)
    return groups


def own_options(runs: list[dict], options: dict) -> list[str]:
    """The options that decide an experiment's runs, as arguments: all its jobs get them, so that each finds the same runs."""
    used = {(stage.get("data") or {}).get("dataset") for run in runs for stage in experiments.stages(run["config"])}
    return [f"--option {key}={value}" for key, value in sorted(options.items()) if key in used]


def make_job(root: Path, tier: str, name: str, runs: list[dict], known: dict, per_node: int | None) -> dict:
    """One job out of runs that one process does in turn: times add up, the rest is what the largest needs."""
    needed = [run["resources"] for run in runs]
    data = {folder: data for run in runs for folder, data in prepared(root, run["config"], known)}
    devices = [run["config"].get("train", {}).get("devices", 1) for run in runs]
    for run, used_gpus in zip(runs, devices):
        idle = run["resources"]["gpus"] - used_gpus
        if idle > 0 and run["config"].get("train", {}).get("steps"):  # a task that only measures takes what it wants
            raise Misuse(
                f"{run['id']} (tier {tier}): {idle} of its GPUs would idle; set train.devices to resources.gpus"
            )
    return {
        "done": f"results/{tier}/{name}/done.json",
        "hashes": hashlib.sha256(" ".join(run["config_hash"] for run in runs).encode()).hexdigest()[:16],
        "runs": runs,
        "data": data,
        "code": [*run_code(runs), *named_files(root, runs)],
        "launcher": launcher(max(devices), per_node),
        "nodes": -(-max(devices) // per_node) if per_node else 1,
        "threads": max(r["threads"] for r in needed),
        "mem_mb": max(r["mem_mb"] for r in needed),
        "gpus": max(r["gpus"] for r in needed),
        "minutes": STARTING + sum(r["minutes"] for r in needed),
    }


def launcher(devices: int, per_node: int | None) -> str:
    """What starts a job's processes: python, torchrun on one node, or one torchrun on each node of a SLURM allocation.

    per_node: GPUs of a node; None keeps everything on one.
    """
    torchrun = "python -m torch.distributed.run"
    if devices == 1:
        return "python"
    if per_node is None or devices <= per_node:
        return f"{torchrun} --standalone --nproc-per-node {devices}"
    nodes, rest = divmod(devices, per_node)
    if rest:
        raise Misuse(f"train.devices: {devices} does not fill nodes of {per_node} GPUs (gpus_per_node of the tier)")
    first = "$(scontrol show hostnames $SLURM_JOB_NODELIST | head -n 1):29500"
    return (
        f"srun --nodes {nodes} --ntasks {nodes} --ntasks-per-node 1 {torchrun} --nnodes {nodes} "
        f"--nproc-per-node {per_node} --rdzv-backend c10d --rdzv-endpoint {first}"
    )


def prepared(root: Path, config: dict, known: dict) -> list[tuple[str, dict]]:
    """[(prepared folder relative to the root, config["data"])], empty for a task that needs no data; known: sources.yaml."""
    needed = []
    for stage in experiments.stages(config):  # what is trained before the run reads data, too
        if stage.get("data"):
            needed.append(stage["data"])
        weights = (stage.get("model") or {}).get("pretrained")
        # a name that is not known is a folder's or one of the hub, which the run itself reads; a mapping is an earlier stage
        if isinstance(weights, str) and weights in known:
            needed.append({"dataset": weights, "source": "package"})
    for data in needed:
        if data["dataset"] not in known:
            raise Misuse(f"unknown dataset {data['dataset']!r}{nearest(data['dataset'], known)}")
    return [(str(prepared_folder(root, data).relative_to(root)), data) for data in needed]


@functools.cache
def code_files(*entries: str) -> list[str]:
    """`entries` (relative to src/lowmem) and every file of this package that they import, directly or not.

    They are inputs of the rules, since Snakemake does not see which modules a shell command loads.
    """
    found = [provenance.PACKAGE / name for name in entries]
    return sorted(map(provenance.name_of, provenance.import_closure(filter(Path.is_file, found), SHARED)))


def run_code(runs: list[dict]) -> list[str]:
    """The files whose change makes a record of these runs stale: what record.py writes into it."""
    return sorted({provenance.name_of(path) for run in runs for path in provenance.code_paths(run["config"])})


def named_files(root: Path, runs: list[dict]) -> list[str]:
    """The files that `measure` names: places of windows, questions for a judge. Their text decides the result, too."""
    measures = [run["config"].get("measure") or {} for run in runs]
    named = {measure[key] for measure in measures for key in NAMES_FILE if isinstance(measure.get(key), str)}
    return sorted(name for name in named if (root / name).is_file())


def datasets(jobs: dict[str, dict]) -> dict[str, dict]:
    """{prepared folder: config["data"]} over all jobs: what the prepare rule makes, and from what."""
    return {folder: data for job in jobs.values() for folder, data in job["data"].items()}


def prepare_inputs(root: Path, data: dict) -> dict[str, list[str]]:
    """What a prepared folder is made from: the fetched raw files, and the code that reads them."""
    raw = [raw_folder(root, part, data["source"]).relative_to(root) for part in fetch_parts(root, data["dataset"])]
    script = fetch_script(root, data["dataset"])
    code = code_files("data/prepare.py", "data/tokenizers.py")
    if (root / script).is_file():
        own = provenance.import_closure([root / script], SHARED) - {root / script}  # what the script imports
        code = sorted({*code, *map(provenance.name_of, own)}) + [str(script)]
    return {"raw": [f"{folder}/fetched.json" for folder in raw], "code": code}


def prepare_arguments(data: dict) -> str:
    """Arguments of `lowmem prepare` for one prepared folder."""
    tokenizer = f" --tokenizer {data['tokenizer']}" if data.get("tokenizer") else ""
    return f"{data['dataset']} --source {data['source']}{tokenizer}"


def select(
    root: Path,
    experiment: str,
    tier: str,
    options: dict,
    variant: str | None = None,
    seed: int | None = None,
    dataset: str | None = None,
) -> list[dict]:
    """Runs of an experiment, narrowed to one variant, seed and dataset when these are given."""
    runs = experiments.runs(root, experiment, tier, options)
    runs += [run for run in prerequisites.unnamed(runs) if run["variant"] == variant]  # what they start from
    variants, seeds = {run["variant"] for run in runs}, {run["seed"] for run in runs}
    if variant is not None and variant not in variants:
        raise Misuse(f"{experiment} has no variant {variant!r}{nearest(variant, variants)}")
    if seed is not None and seed not in seeds:
        raise Misuse(f"{experiment} has no seed {seed}{nearest(str(seed), seeds)}")
    known = {name for name in map(dataset_of, runs) if name}
    if dataset is not None and dataset not in known:
        raise Misuse(f"{experiment} reads no dataset {dataset!r}{nearest(dataset, known)}")
    chosen = [run for run in runs if variant in (None, run["variant"]) and seed in (None, run["seed"])]
    return [run for run in chosen if dataset in (None, dataset_of(run))]


def read_run(root: Path, path: Path) -> dict:
    """A run from a JSON file with at least {config}; a record will do. Names default to the file's, seed to 0."""
    given = read_json(path, by_hand=True)
    if not isinstance(given, dict) or "config" not in given:
        raise Misuse(f"{path}: a run needs the key 'config'")
    known = {"experiment", "variant", "seed", "tier", "config", "resources", "id", "config_hash"}
    if "status" not in given:  # what has a status is a record
        refuse_unknown(given, known, str(path))
    experiments.check(root, given, "run_file", path)
    seed = given.get("seed", 0)
    config = {key: value for key, value in given["config"].items() if key != "resources"}
    for stage in experiments.stages(config):
        experiments.check_run(root, stage, path)
        experiments.check_files_exist(stage, path)
    prepared(root, config, listed(root))
    names = {"experiment": path.stem, "variant": "only", "tier": "own"}
    names = {key: safe_names.part(given.get(key) or name, f"{path}: {key}") for key, name in names.items()}
    run = {
        **names,
        "seed": seed,
        "config": config,
        "resources": {"threads": 1, "mem_mb": 2000, "gpus": 0, "minutes": 30, **(given.get("resources") or {})},
    }
    run["id"] = f"{run['experiment']}/{run['variant']}/seed{run['seed']}"
    run["config_hash"] = experiments.config_hash({**config, "seed": run["seed"]})
    return run


def write_done(root: Path, runs: list[dict], path: Path) -> None:
    """A job's declared output: each run's record by hash, so that exhibits are redrawn only when a record changed."""
    rows = []
    for run in runs:
        folder = record.folder(root, run)
        status, whole = record.load(folder)["status"], sha256(folder / "record.json")
        rows.append({"id": run["id"], "status": status, "config_hash": run["config_hash"], "sha256": whole})
    write_json(path, rows)
