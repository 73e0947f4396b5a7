"""One file per table or figure; the file name is its id and its Snakemake target."""
