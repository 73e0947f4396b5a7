"""A run that takes a blink: two eigenvalues, four steps."""

from lowmem.pipeline import experiments

CONFIG = {"task": "quadratic", "measure": {"blocks": {"a": {"values": [1, 2]}}, "size": 3, "horizons": [4]}}
RUN = {
    "id": "toy/only/seed0",
    "experiment": "toy",
    "variant": "only",
    "seed": 0,
    "tier": "own",
    "config": CONFIG,
    "config_hash": experiments.config_hash({**CONFIG, "seed": 0}),
    "resources": {"threads": 1, "gpus": 0},
}
