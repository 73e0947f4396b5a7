"""Write the table of docs/robustness.md from data/campaigns/counts.json: python docs/robustness.py."""

import json
import re
from pathlib import Path

HERE = Path(__file__).parent
PAGE, COUNTS = HERE / "robustness.md", HERE.parent / "data/campaigns/counts.json"
BEGIN, END = "<!-- campaigns: written by docs/robustness.py -->\n", "<!-- end of campaigns -->"


def table(campaigns: dict[str, dict]) -> str:
    """A row for each campaign, in the order of their names."""
    lines = ["| tried | how often | what held | where |", "|---|---|---|---|"]
    for one in campaigns.values():
        counts = ", ".join(f"{count:,} {what}" for what, count in one["counts"].items())
        lines.append(f"| {one['tried']} | {counts} | {one['held']} | `{one['test']}` |")
    return "\n".join(lines) + "\n"


def page(text: str, campaigns: dict[str, dict]) -> str:
    """The page with its table made anew."""
    return re.sub(f"(?<={re.escape(BEGIN)}).*?(?={re.escape(END)})", lambda _: table(campaigns), text, flags=re.DOTALL)


if __name__ == "__main__":
    found = page(PAGE.read_text(encoding="utf-8"), json.loads(COUNTS.read_text(encoding="utf-8")))
    PAGE.write_text(found, encoding="utf-8")
