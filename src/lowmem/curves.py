"""Losses of language-model runs, for the exhibits that compare optimizers."""

from lowmem.exhibit import Runs, Shown


def listed(runs: Runs) -> Shown:
    """Final losses of all runs as they are."""
    rows = [[run.variant, run.seed, run.reason or run.final("val_loss")] for run in runs]
    done = [run.id for run in runs if run.status == "done"]
    return Shown("Final validation losses.", ["run", "seed", "validation loss (nat)"], rows, runs_used=done)
