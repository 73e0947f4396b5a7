# Each figure and each table with the numbers it shows (csv), its caption, published values and runs used (json).
for kind, suffix in (("figure", "svg"), ("table", "md")):

    rule:
        name:
            kind
        input:
            unpack(exhibit_inputs),
        output:
            shown=report(
                f"reports/{TIER}/{kind}s/{{id}}.{suffix}",
                caption="../report/exhibit.rst",
                category=exhibit_category,
                labels=exhibit_labels,
            ),
            numbers=f"reports/{TIER}/{kind}s/{{id}}.csv",
            values=f"reports/{TIER}/{kind}s/{{id}}.json",
        log:
            f"logs/{TIER}/{kind}/{{id}}.log",
        wildcard_constraints:
            id="|".join(i for i, header in EXHIBITS.items() if header["kind"] == kind),
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
            "draw {wildcards.id}"
        shell:
            "PYTHONPATH=src python -m lowmem exhibit {wildcards.id} --tier {params.tier} {params.options} > {log} 2>&1"
