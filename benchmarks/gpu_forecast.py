"""What the counts and the planner predict for gpu_campaign.py, written down before any measurement (gpu_predictions.json)."""

import functools

from gpu_sections import COUNTED, TRAINING, Setting, cell, model_of, with_rate

from lowmem.memory import hardware, throughput

GPU = "h200-141gb"


def predictions() -> dict:
    """What the counts and the planner say, for one GPU."""
    return {"gpu": GPU, "steps": predicted_steps(), "training": predicted_training(), "batches": predicted_training()}


def predicted_steps() -> dict:
    """Milliseconds of a step: of its bytes at the planner's share of the memory's rate, or of starting its kernels."""
    gpu, rows = hardware.find(GPU), {}
    sizes = {"134M": (134_105_856, 0), "7B": (6_738_415_616, 1)}
    for name, (elements, which) in sizes.items():
        for case, counted in COUNTED.items():
            seconds = max(counted[2] * elements / (gpu.stream * hardware.STREAM), counted[which] * hardware.LAUNCH)
            rows[f"{name} {case}"] = dict(ms=1e3 * seconds, launches=counted[which])
    return rows


@functools.cache
def predicted_training(gpu: str = GPU) -> dict:
    """{case: seconds, tokens_per_s, peak_gib of one sequence; the largest batch} by the planner."""
    setting, rows = Setting("cuda", False, 0.0), {}
    for case, chosen in TRAINING.items():
        found = throughput.plan(model_of(setting), cell(with_rate(chosen), setting), hardware.find(gpu))
        single = found.single_speed
        rows[case] = dict(seconds=single.seconds, tokens_per_s=single.tokens_per_s, peak_gib=found.single.peak / 2**30)
        rows[case]["batch"] = found.batch
    return rows
