# One claim, decided by the rule that claims.yaml fixed before the run. Only its own entry is a reason to decide again.
rule claim:
    input:
        exhibit=lambda w: plan.exhibit_files(TIER, EXHIBITS[CLAIMS[w.claim]["exhibit"]])[2],
        code=plan.code_files("claims.py"),
    output:
        f"reports/{TIER}/claims/{{claim}}.json",
    log:
        f"logs/{TIER}/claim/{{claim}}.log",
    wildcard_constraints:
        claim="|".join(map(re.escape, CLAIMS)),
    conda:
        "../../environment.yml"
    resources:
        mem_mb=500,
        runtime=10,
    params:
        tier=TIER,
        rule=lambda w: CLAIMS[w.claim],
    shell:
        "PYTHONPATH=src python -m lowmem claim {wildcards.claim} --tier {params.tier} > {log} 2>&1"
