"""config/README.md, made from the schemas: `python -m lowmem.pipeline.config_docs` writes it; a test finds it out of date."""

from pathlib import Path

from lowmem.files import read_yaml, write_text
from lowmem.pipeline.experiments import find_root

FILES = {  # schema: where such a file stands
    "config": "workflow/config/config.yaml, and what `snakemake --config key=value` takes",
    "tier": "workflow/config/tiers/<tier>.yaml",
    "experiment": "workflow/config/experiments/<name>.yaml",
    "claim": "workflow/config/claims/<topic>.yaml",
}
OPENING = """# Configuration

`snakemake --cores all` needs none: it runs the laptop tier. `--config tier=smoke|laptop|overnight|workstation|paper` picks
another one; a dataset's name is a key too and says where it comes from (`--config openwebtext=hub`). The files stand in
`workflow/config/`. The tables below are made from `workflow/schemas/`, against which every file is checked; an unknown key is
refused with the nearest known one.
"""


def text(root: Path) -> str:
    """The whole page."""
    parts = [OPENING]
    for name, place in FILES.items():
        schema = read_yaml(root / f"workflow/schemas/{name}.schema.yaml")
        parts.append(f"## {place}\n\n| key | what it takes | meaning |\n|---|---|---|\n{rows(schema)}")
    return "\n".join(parts)


def rows(schema: dict, before: str = "") -> str:
    """One line for each key of a schema, those inside another key after it."""
    found = ""
    for key, value in schema.get("properties", {}).items():
        required = "" if key in schema.get("required", []) else ", optional"
        name = f"{before}{key}"
        cells = (f"`{name}`", takes(value) + required, value.get("description", ""))
        found += "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"
        inner = value.get("items", value) if isinstance(value, dict) else {}
        found += rows(inner, f"{name}[]." if "items" in value else f"{name}.")
    return found


def takes(value: dict) -> str:
    """The values of a key in words."""
    if "enum" in value:
        return ", ".join(
            "null" if one is None else f"{one}".lower() if isinstance(one, bool) else str(one) for one in value["enum"]
        )
    if "const" in value:
        return str(value["const"]).lower()
    kind = value.get("type", "see the schema")
    return " or ".join(kind) if isinstance(kind, list) else kind


if __name__ == "__main__":
    root = find_root()
    write_text(root / "config/README.md", text(root))
