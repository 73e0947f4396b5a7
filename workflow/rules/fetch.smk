# Downloads. Only the marker is declared: files beside it survive a failed job, so the next try continues them.
# Of sources.yaml only the dataset's own entry is a reason to fetch again, so it is a parameter and not an input.
rule fetch:
    output:
        "data/raw/{raw}/fetched.json",
    log:
        "logs/fetch/{raw}.log",
    retries: config["fetch_retries"]
    localrule: True
    conda:
        "../../environment.yml"
    resources:
        mem_mb=500,
        runtime=120,
    params:
        arguments=fetch_arguments,
        sources=fetch_sources,
    message:
        "download {wildcards.raw}"
    shell:
        "PYTHONPATH=src python -m lowmem fetch {params.arguments} 2>&1 | tee {log}"
