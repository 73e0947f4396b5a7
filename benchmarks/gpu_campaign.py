"""Everything about speed and memory on a GPU that this repository predicts, measured in one command of seven minutes.

    PYTHONPATH=src python benchmarks/gpu_campaign.py --out DIR       # one GPU with 80 GB or more
    PYTHONPATH=src python benchmarks/gpu_campaign.py --predict       # writes gpu_predictions.json, before any measurement
    PYTHONPATH=src python benchmarks/gpu_campaign.py --tiny --out DIR     # every section in small, on whatever is here

DIR/result.json is written after each section, so that what was measured survives whatever ends the run; DIR/result.md
sets it beside the predictions. A section that fails or is late leaves its reason. Optional packages (adam-mini) only
leave their rows out. The sections themselves: gpu_sections.py.
"""

import argparse
import json
import time
import traceback
from pathlib import Path

import gpu_forecast
import gpu_sections
import torch
from timing import table

from lowmem.memory import hardware

PREDICTIONS = Path(__file__).with_name("gpu_predictions.json")
SECTIONS = {  # name: seconds after the start when the next one must begin
    "machine": 15,
    "tests": 90,
    "steps": 205,
    "variants": 235,
    "training": 325,
    "batches": 395,
    "host": 410,
}


def main() -> None:
    """Run the sections in order, or write the predictions."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("gpu_campaign"))
    parser.add_argument("--predict", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--only", nargs="*", choices=list(SECTIONS), default=list(SECTIONS))
    options = parser.parse_args()
    if options.predict:
        PREDICTIONS.write_text(json.dumps(gpu_forecast.predictions(), indent=1) + "\n")
        return
    options.out.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not options.tiny:
        parser.error("no GPU here; --tiny runs every section in small")
    card = None if options.tiny else nearest()  # its predictions take seconds, before the clock starts
    forecast = gpu_forecast.predicted_training(card) if card else {}
    setting = gpu_sections.Setting(device, options.tiny, time.monotonic(), forecast=forecast)
    result = {"device": device, "tiny": options.tiny, "taken_for": card}
    for name in options.only:
        result[name] = section(name, setting)
        (options.out / "result.json").write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
        print(f"{time.monotonic() - setting.started:5.0f} s  {name}", flush=True)
    compare(result)
    (options.out / "result.json").write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    text = report(result, {} if options.tiny else json.loads(PREDICTIONS.read_text()))
    (options.out / "result.md").write_text(text)
    print(text)


def nearest() -> str:
    """The planner's GPU whose memory is nearest to that of this one."""
    here = torch.cuda.get_device_properties(0).total_memory / 2**30
    return min(hardware.GPUS, key=lambda name: abs(hardware.GPUS[name].memory - here))


def section(name: str, setting) -> dict:
    """What a section found, or why it found nothing; its deadline is known to it."""
    setting.deadline = setting.started + SECTIONS[name]
    if time.monotonic() > setting.deadline:
        return {"missing": "too late: the sections before took its time"}
    try:
        return getattr(gpu_sections, name)(setting)
    except Exception as error:  # whatever it is, the sections after must run
        traceback.print_exc()
        return {"missing": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
    finally:
        gpu_sections.free()


def compare(result: dict) -> None:
    """Into the rows: times of torch's fused AdamW, shares of the rate at which memory can be copied, and the share of a
    training step that the optimizer's own step takes."""
    of_steps = result.get("steps", {}).get("rows", {})
    copied = result.get("machine", {}).get("copy_tb_per_s")
    for case, row in of_steps.items():
        model, precision = case.split()[0], "bf16" if "bf16" in case else "fp32"
        base = of_steps.get(f"{model} torch fused AdamW {precision}", {})
        if "ms" in row and "ms" in base and "times_fused_adamw" not in row:  # not in turn: no memory for both
            row["times_fused_adamw"] = row["ms"] / base["ms"]
        if "ms" in row and copied:
            row["of_copy_rate"] = row["tb_per_s"] / copied
    for case, row in result.get("training", {}).get("rows", {}).items():
        alone = of_steps.get(f"7B {case} bf16", {})
        if "ms" in alone and "seconds" in row:
            row["share_of_update"] = alone["ms"] / (1e3 * row["seconds"])


def report(result: dict, predicted: dict) -> str:
    """Markdown: measured beside predicted, and by how many per cent what was predicted is off."""
    lines = [f"# GPU campaign on {result.get('machine', {}).get('gpu', result['device'])}", ""]
    card, foreseen = result.get("taken_for"), predicted.get("gpu")
    if card and card != foreseen:
        lines += [f"By its memory this is the planner's {card}; what stands as predicted below is for {foreseen}.", ""]
    for name in SECTIONS:
        found = result.get(name, {"missing": "not asked for"})
        lines += [f"## {name}", ""]
        if "missing" in found:
            lines += [f"Nothing: {found['missing']}.", ""]
            continue
        rows = found.pop("rows", None)
        lines += [f"- {key}: {shown(value)}" for key, value in found.items()]
        if rows:
            forecast = predicted.get(name, {})
            heads = list(dict.fromkeys(key for row in rows.values() for key in row))
            guesses = sorted({key for key in heads if any(key in row for row in forecast.values())})
            cells = [
                (
                    key,
                    *(shown(row.get(h)) for h in heads),
                    *(beside(row.get(h), forecast.get(key, {}).get(h)) for h in guesses),
                )
                for key, row in rows.items()
            ]
            lines += ["", table(cells, ("", *heads, *(f"{g}, predicted" for g in guesses)))]
        lines.append("")
    return "\n".join(lines)


def beside(measured, predicted) -> str:
    """A prediction, and by how much it is off."""
    known = isinstance(measured, int | float) and predicted
    return f"{shown(predicted)} ({100 * (predicted / measured - 1):+.0f} %)" if known and measured else shown(predicted)


def shown(value) -> str:
    """A value for people; what is missing as a dash."""
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
