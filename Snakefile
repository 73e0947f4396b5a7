# Adam-mini and LOMO, reproduced: from download to verdict. `snakemake --cores all` runs the laptop tier.
import os
import sys
import time
from pathlib import Path

from snakemake.utils import min_version

min_version("9.20")
# Many images forbid Python to keep bytecode; then each step, a process of its own, would compile PyTorch's sources anew: 3 s.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
ROOT = Path(str(workflow.current_basedir)).resolve()  # of this file, also where workflow/Snakefile includes it
# Every step works in this checkout, whatever the shell that started the pipeline says.
os.environ.update(LOWMEM_ROOT=str(ROOT))
BEGAN = time.time()


workdir: ROOT  # every path here is relative to the checkout, wherever snakemake is called


if Path.cwd().resolve() != ROOT:
    sys.exit(f"lowmem: results lie in the checkout, {ROOT}; leave out --directory (-d), or clone the repository there")


configfile: "workflow/config/config.yaml"


sys.path.insert(0, str(ROOT / "src"))


include: "workflow/rules/common.smk"
include: "workflow/rules/fetch.smk"
include: "workflow/rules/prepare.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/exhibit.smk"
include: "workflow/rules/claims.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/plan.smk"


onstart:
    estimate.expect(ROOT, TIER, JOBS)  # for the overall time left, which each finished job says


onsuccess:
    for line in report_summary.closing(ROOT, TIER, JOBS, BEGAN):
        print(line, file=sys.stderr)


onerror:
    for line in report_summary.closing(ROOT, TIER, JOBS, BEGAN):
        print(line, file=sys.stderr)


rule all:
    default_target: True
    input:
        rules.redraw.output if config.get("redraw") else rules.report.output,
        # A result that is lost is made again, though what was drawn from it is there.
        [] if config.get("redraw") else [job["done"] for job in JOBS.values()],


rule figures:
    input:
        [planning.exhibit_files(TIER, header) for header in EXHIBITS.values() if header["kind"] == "figure"],
    message:
        "all figures are there"


rule tables:
    input:
        [planning.exhibit_files(TIER, header) for header in EXHIBITS.values() if header["kind"] == "table"],
    message:
        "all tables are there"


# Each exhibit's id is a target that schedules only its own experiments.
for exhibit_id, header in EXHIBITS.items():

    rule:
        name:
            exhibit_id
        input:
            rules.redraw.output if config.get("redraw") else planning.exhibit_files(TIER, header),
            [] if config.get("redraw") else jobs_of(header),
        message:
            "{rule} is there"
