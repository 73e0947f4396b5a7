# One table with the numbers it shows (csv), its caption, published values and runs used (json).
rule table:
    input:
        unpack(exhibit_inputs),
    output:
        shown=report(
            f"reports/{TIER}/tables/{{id}}.md",
            caption="../report/exhibit.rst",
            category=exhibit_category,
            labels=exhibit_labels,
        ),
        numbers=f"reports/{TIER}/tables/{{id}}.csv",
        values=f"reports/{TIER}/tables/{{id}}.json",
    log:
        f"logs/{TIER}/table/{{id}}.log",
    wildcard_constraints:
        id="|".join(i for i, header in EXHIBITS.items() if header["kind"] == "table"),
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
        "PYTHONPATH=src python -m lowmem exhibit {wildcards.id} --tier {params.tier} {params.options} > {log} 2>&1"
