# Runs, downloads and estimated time of the current tier. No output: it always runs when asked.
rule plan:
    log:
        f"logs/{TIER}/plan.log",
    localrule: True
    conda:
        "../../environment.yml"
    params:
        tier=TIER,
        options=OPTION_ARGUMENTS,
    message:
        "what will be run"
    shell:
        "PYTHONPATH=src python -m lowmem plan --tier {params.tier} {params.options} 2>&1 | tee {log}"
