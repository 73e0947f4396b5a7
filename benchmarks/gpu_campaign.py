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

import gpu_sections
import torch
from timing import table

PREDICTIONS = Path(__file__).with_name("gpu_predictions.json")
SECTIONS = {  # name: seconds after the start when the next one must begin
    "machine": 15,
    "tests": 90,
    "steps": 205,
    "variants": 235,
    "training": 325,
    "batches": 385,
    "host": 405,
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
        PREDICTIONS.write_text(json.dumps(gpu_sections.predictions(), indent=1) + "\n")
        return
    options.out.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not options.tiny:
        parser.error("no GPU here; --tiny runs every section in small")
    setting = gpu_sections.Setting(device, options.tiny, time.monotonic())
    result = {"device": device, "tiny": options.tiny}
    for name in options.only:
        result[name] = section(name, setting)
        (options.out / "result.json").write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
        print(f"{time.monotonic() - setting.started:5.0f} s  {name}", flush=True)
    text = report(result, {} if options.tiny else json.loads(PREDICTIONS.read_text()))
    (options.out / "result.md").write_text(text)
    print(text)


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


def report(result: dict, predicted: dict) -> str:
    """Markdown: measured beside predicted."""
    lines = [f"# GPU campaign on {result.get('machine', {}).get('gpu', result['device'])}", ""]
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
                (key, *(shown(row.get(h)) for h in heads), *(shown(forecast.get(key, {}).get(h)) for h in guesses))
                for key, row in rows.items()
            ]
            lines += ["", table(cells, ("", *heads, *(f"{g}, predicted" for g in guesses)))]
        lines.append("")
    return "\n".join(lines)


def shown(value) -> str:
    """A value for people; what is missing as a dash."""
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
