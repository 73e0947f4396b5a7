"""Peak memory of a fine-tuning step, measured on this machine, beside that of inference alone (LOMO's headline).

The same model, batch and precision, once without gradients and once trained by an optimizer. Bytes come from the
allocator's own events on a CPU, from torch.cuda on a GPU; components from the accountant (memory/accountant.py).
"""

from pathlib import Path

import torch

from lowmem.memory import measured_peak, target_model
from lowmem.memory.accountant import TrainingSetup, estimate_memory
from lowmem.training import machine


def measure(config: dict, seed: int, root: Path) -> dict:
    """measure: {batch, seq_len, precision, checkpointing?, device: cpu | cuda}; a configuration without optimizer is inference.

    metrics.final: {measured_bytes, weights_bytes, resident_bytes (growth of the process, None on a GPU)}. memory: bytes by
    component at the peak as accounted (none for inference), and the measured peak.
    """
    settings = dict(config["measure"])
    device = machine.measuring_device(settings)
    model = target_model.find(config["model"])
    trains = "optimizer" in config
    cell = TrainingSetup(optimizer=config.get("optimizer", {}), device="gpu" if device == "cuda" else "cpu", **settings)
    peak, resident = measured_peak.peak_bytes(
        model, cell, device, measured_peak.build if trains else measured_peak.inference
    )
    parts = estimate_memory(model, cell).parts if trains else {}
    final = {
        "measured_bytes": peak,
        "weights_bytes": model.parameters() * (2 if cell.precision in ("bf16", "master") else 4),
        "resident_bytes": resident,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
    }
    return {"metrics": {"final": final}, "memory": {**parts, "peak": peak}}
