# The page: verdicts, every exhibit beside the published values, machine and runs.
rule report:
    input:
        claims=rules.claims.output,
        exhibits=[plan.exhibit_files(TIER, header) for header in EXHIBITS.values()],
        code=plan.code_files("report.py"),
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
    shell:
        "PYTHONPATH=src python -m lowmem report --tier {params.tier} {params.options} > {log} 2>&1"


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
    shell:
        "PYTHONPATH=src python -m lowmem report --so-far --tier {params.tier} {params.options} 2>&1 | tee {log}"
