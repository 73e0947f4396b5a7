# Raw files to arrays or tokens. Which of them: what the runs' configurations name.
rule prepare:
    input:
        unpack(prepare_inputs),
    output:
        "data/prepared/{prepared}/meta.json",
    log:
        "logs/prepare/{prepared}.log",
    wildcard_constraints:
        prepared="|".join(re.escape(Path(folder).name) for folder in DATASETS),
    conda:
        "../../environment.yml"
    resources:
        mem_mb=4000,
        runtime=240,
    params:
        arguments=prepare_arguments,
    message:
        "prepare {wildcards.prepared}"
    shell:
        "PYTHONPATH=src python -m lowmem prepare {params.arguments} 2>&1 | tee {log}"
