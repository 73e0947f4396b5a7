# One rule for every run of every tier: a job is an experiment, or one variant and seed of it, as the tier's file says.
# Records and checkpoints are not declared: Snakemake would delete them when a job fails, and a restart continues them.
rule train:
    input:
        data=lambda w: [f"{folder}/meta.json" for folder in JOBS[w.job]["data"]],
        code=lambda w: JOBS[w.job]["code"],
        after=lambda w: JOBS[w.job]["after"],  # runs whose weights these start from
    output:
        f"results/{TIER}/{{job}}/done.json",
    log:
        f"logs/{TIER}/train/{{job}}.log",
    wildcard_constraints:
        job="|".join(map(re.escape, JOBS)),
    conda:
        "../../environment.yml"
    threads: lambda w: JOBS[w.job]["threads"]
    resources:
        mem_mb=lambda w: JOBS[w.job]["mem_mb"],
        runtime=lambda w, attempt: attempt * JOBS[w.job]["minutes"],  # a second attempt gets twice the time
        gpu=lambda w: JOBS[w.job]["gpus"],
        nodes=lambda w: JOBS[w.job]["nodes"],
    params:
        arguments=lambda w: JOBS[w.job]["arguments"],
        hashes=lambda w: JOBS[w.job]["hashes"],
        launcher=lambda w: JOBS[w.job]["launcher"],
    message:
        "run {wildcards.job}"
    shell:
        # tee outlives SIGTERM, since the run has a line to say after its checkpoint
        # glibc reads its tunables before a process starts; huge pages spare nearly all page faults (machine.keep_memory)
        "GLIBC_TUNABLES=${{GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}} PYTHONPATH=src"
        " {params.launcher} -m lowmem train {params.arguments} --done {output} 2>&1"
        " | (trap '' INT TERM; exec tee {log})"
