"""Figure 17 of Adam-mini: Swin, DiT and a diffusion model on the latents of a deep-compression autoencoder.

Transformers, so Adam-mini takes its usual blocks: heads, output neurons, tokens. ViT runs beside Swin as a row of ours.
"""

from lowmem.reporting import display, plots
from lowmem.reporting.exhibit import ExhibitResult
from lowmem.reporting.numbers import scale
from lowmem.reporting.numbers.quarters import ACCURACY, BEHIND, COLUMNS, LOSS, add_rows, behind, data_of, of
from lowmem.reporting.panels.quarters import curves, sample_strip
from lowmem.reporting.published import printed, published_entry
from lowmem.reporting.runs import Runs

EXHIBIT = {
    "id": "adam_mini_fig17",
    "paper": "adam_mini",
    "label": "Figure 17",
    "order": 170,
    "kind": "figure",
    "title": "Swin, DiT and diffusion on deep-compression latents",
    "experiments": ["vision_transformers", "dit"],
    "published": "adam_mini.figure17",
}

MODELS = {
    "swin": ("Swin", ACCURACY),
    "vit": ("ViT (ours)", ACCURACY),
    "dit": ("DiT", LOSS),
    "dcae": ("DiT on DC-AE latents", LOSS),
}
PANELS = {"Swin-Transformer": "accuracy", "DiT-XL-2 (675M)": "training loss", "DC-AE-Diffusion": "training loss"}


def render(runs: Runs, published: dict, tier: str) -> ExhibitResult:
    """Values: <model>.behind for swin, vit, dit, dcae."""
    shown = ExhibitResult(
        caption=scale.counted(runs, "training pictures")
        + f"Data: {data_of(runs)}. Mean over seeds, thin lines the seeds. Samples: the same starting noise and classes "
        f"for both optimizers{'' if tier == 'paper' else ': both run alike here, neither well'}. {BEHIND}",
        columns=COLUMNS,
        rows=[],
        deviations=[
            "Losses are those on held-out pictures with fixed noise; the paper shows training losses.",
            "DC-AE: our own small autoencoder, trained on the same data with AdamW and then frozen, the same for both "
            "optimizers; it keeps the residual shortcuts of DC-AE and leaves out attention and the adversarial loss.",
            "DiT predicts noise with a fixed variance; weights are not averaged over time.",
        ],
    )
    if tier != "paper":
        shown.deviations.append("Models, data and length are those of this tier: see the run list.")
    for panel, what in PANELS.items():
        for optimizer in ("AdamW", "Adam-mini"):
            value = printed(published, "end_by_eye", panel=panel, optimizer=optimizer)
            shown.published += published_entry(f"{panel}, {optimizer}, {what} at the end, by eye", value)
    groups = {name: of(runs, name) for name in MODELS}
    for name, (label, metric) in MODELS.items():
        add_rows(shown, label, groups[name], metric)
        shown.values[f"{name}.behind"] = behind(groups[name], metric)
    shown.figure = draw(groups)
    return shown


def draw(groups: dict):
    """The training of three models, and images that two of them generate."""
    top = ("swin", "dit", "dcae")
    drawn, panels = plots.figure([list(top), ["samples"] * 3], height=6.2, height_ratios=[1.4, 1])
    for letter, name in zip("abc", top, strict=True):
        label, metric = MODELS[name]
        curves(panels[name], groups[name], metric, "images", "training images", f"{letter}  {label}")
    shown = {"dit": "DiT", "dcae": "DC-AE latents"}
    strip = {f"{shown[name]}, {display.name(o)}": runs for name in shown for o, runs in groups[name].items()}
    sample_strip(panels["samples"], strip)
    panels["samples"].set_title("d  Samples", pad=20)
    return drawn
