# The verdict table.
rule claims:
    input:
        claims=[f"reports/{TIER}/claims/{claim}.json" for claim in CLAIMS],
        code=plan.code_files("claims.py"),
    output:
        report(f"reports/{TIER}/claims.md", caption="../report/claims.rst", category="Verdicts"),
        f"reports/{TIER}/claims.json",
    log:
        f"logs/{TIER}/claims.log",
    conda:
        "../../environment.yml"
    resources:
        mem_mb=500,
        runtime=10,
    params:
        tier=TIER,
    shell:
        "PYTHONPATH=src python -m lowmem claims --tier {params.tier} > {log} 2>&1"
