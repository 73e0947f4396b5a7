# Every claim, decided by the rule that workflow/config/claims/ fixed before the run.
rule claims:
    input:
        exhibits=[planning.exhibit_files(TIER, EXHIBITS[id])[2] for id in sorted({c["exhibit"] for c in CLAIMS})],
        code=planning.code_files("reporting/claims.py"),
    output:
        report(f"reports/{TIER}/claims.md", caption="../report/claims.rst", category="Verdicts"),
        f"reports/{TIER}/claims.json",
    log:
        f"logs/{TIER}/claims.log",
    localrule: True
    conda:
        "../../environment.yml"
    resources:
        mem_mb=500,
        runtime=10,
    params:
        tier=TIER,
        claims=CLAIMS,
    message:
        "decide every claim"
    shell:
        "PYTHONPATH=src python -m lowmem claims --tier {params.tier} > {log} 2>&1"
