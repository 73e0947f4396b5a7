# The page: verdicts, every exhibit beside the published values, machine and runs.
rule report:
    input:
        claims=rules.claims.output,
        exhibits=[planning.exhibit_files(TIER, header) for header in EXHIBITS.values()],
        code=planning.code_files("reporting/report.py"),
        templates=REPORT_TEMPLATES,
    output:
        report(f"reports/{TIER}/index.html", caption="../report/index.rst", category="Report"),
    log:
        f"logs/{TIER}/report.log",
    localrule: True
    conda:
        "../../environment.yml"
    resources:
        mem_mb=1000,
        runtime=30,
    params:
        tier=TIER,
        options=OPTION_ARGUMENTS,
    message:
        "write the page"
    shell:
        "PYTHONPATH=src python -m lowmem report --tier {params.tier} {params.options} > {log} 2>&1"


# The same from the records kept in data/records, all in one process: nothing is downloaded or trained (redraw=true).
rule redraw:
    input:
        archived=[f"data/records/{name}.zip" for name in archive.names(ROOT, TIER)],
        code=planning.code_files("reporting/report.py", *(f"exhibits/{id}.py" for id in EXHIBITS)),
        claims=CLAIM_FILES,
        templates=REPORT_TEMPLATES,
    output:
        f"reports/{TIER}/archived/index.html",
    log:
        f"logs/{TIER}/redraw.log",
    localrule: True
    conda:
        "../../environment.yml"
    resources:
        mem_mb=1500,
        runtime=30,
    params:
        tier=TIER,
    message:
        "draw everything from archived records"
    shell:
        "PYTHONPATH=src python -m lowmem report --archived --tier {params.tier} 2>&1 | tee {log}"


# The same page from whatever is there, for when something failed or is still running. No output: it always runs when asked.
rule report_so_far:
    log:
        f"logs/{TIER}/report_so_far.log",
    localrule: True
    conda:
        "../../environment.yml"
    params:
        tier=TIER,
        options=OPTION_ARGUMENTS,
    message:
        "draw what there is"
    shell:
        "PYTHONPATH=src python -m lowmem report --so-far --tier {params.tier} {params.options} 2>&1 | tee {log}"
