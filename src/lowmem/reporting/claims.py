"""The board: every claim of workflow/config/claims/ with its published value, ours and the verdict (verdicts.py).

A claim is refused when nothing could decide it: a rule without a possible number, a published value without a source, a
gate that names no value of the exhibit.
"""

import math
from pathlib import Path

from lowmem import kept_files
from lowmem.errors import Misuse, nearest
from lowmem.files import read_json, read_yaml, write_json, write_text
from lowmem.pipeline import experiments, planning
from lowmem.reporting.tables import markdown
from lowmem.reporting.values import missing
from lowmem.reporting.verdicts import WORDS, impossible, verdict


def load(root: Path) -> list[dict]:
    """All claims in the order of their exhibits, as listed in workflow/config/claims/<topic>.yaml.

    Misuse where a file is not what its schema says, or holds a claim that nothing could decide.
    """
    exhibits, found = planning.exhibits(root), {}
    for path in files(root):
        loaded = read_yaml(path)
        experiments.check(root, loaded, "claim", path)
        for claim in loaded["claims"]:
            if claim["id"] in found:
                raise Misuse(f"{path}: claim {claim['id']!r} is used twice; rename one")
            if problem := undecidable(claim, exhibits):
                raise Misuse(f"{path}: {claim['id']}: {problem}")
            found[claim["id"]] = claim
    places = {id: place for place, id in enumerate(exhibits)}
    return sorted(found.values(), key=lambda claim: places[claim["exhibit"]])


def files(root: Path) -> list[Path]:
    """The files that hold claims, one for each topic; Misuse where there are none."""
    folder = root / "workflow/config/claims"
    found = sorted(folder.glob("*.yaml"))
    if not found:
        raise Misuse(f"no claims in {folder}; it holds a file for each topic, see CONTRIBUTING.md")
    return found


def undecidable(claim: dict, exhibits: dict) -> str | None:
    """Why nothing could decide a claim; None where an exhibit's value could."""
    if claim["exhibit"] not in exhibits:
        return f"unknown exhibit {claim['exhibit']!r}{nearest(claim['exhibit'], exhibits)}"
    rules = {"rule": claim["rule"], **({"gate": claim["gate"]["rule"]} if "gate" in claim else {})}
    for place, rule in rules.items():
        if problem := impossible(rule):
            return f"{place} cannot be decided: {problem}"
    if claim.get("simulated") and claim["decides"]:
        return "a simulation decides at no tier; write decides: []"
    if both := set(claim.get("demonstration", ())) & set(claim["decides"]):
        return f"tier {min(both)} cannot decide and be a demonstration"
    return None


def decide(root: Path, id: str, tier: str, out: Path | None = None) -> dict:
    """The row of one claim, from its exhibit's values below `out` (default: reports/<tier>)."""
    claims = {claim["id"]: claim for claim in load(root)}
    if id not in claims:
        raise Misuse(f"unknown claim {id!r}{nearest(id, claims)}")
    claim, header = claims[id], planning.exhibits(root)[claims[id]["exhibit"]]
    return decided(claim, header, evidence_tier(root, header, tier), out or root / "reports" / tier)


def evidence_tier(root: Path, header: dict, tier: str) -> str:
    """The tier that an exhibit's runs speak for: where one of them runs as in another tier, that one and not this."""
    sources = {experiments.set_by(root, name, tier) for name in planning.shown_by(header, tier)}
    return next(iter(sources - {tier}), tier)


def decided(claim: dict, header: dict, tier: str, out: Path) -> dict:
    """The row of a claim from the values of its exhibit: {"value", "low"?, "high"?, "n"?, ...}, or None with a reason."""
    path = out / ("figures" if header["kind"] == "figure" else "tables") / f"{claim['exhibit']}.json"
    if not path.is_file():
        absent = missing(f"not run: exhibit {claim['exhibit']} was not made")
        return row(claim, absent, tier, absent)
    kept_files.check_together(path.with_suffix(""))
    values = read_json(path)["values"]
    premise = claim.get("gate", {}).get("value")
    if premise and premise not in values:
        raise Misuse(
            f"claim {claim['id']}: its gate names no value of {claim['exhibit']}: {premise!r}{nearest(premise, values)}"
        )
    absent = missing(f"the exhibit has no value {claim['value']!r}")
    return row(claim, values.get(claim["value"], absent), tier, values.get(premise))


def gather(root: Path, tier: str, out: Path | None = None) -> list[dict]:
    """Decide all claims, in the order of load, into <out>/claims.json and claims.md (default out: reports/<tier>)."""
    out = out or root / "reports" / tier
    headers = planning.exhibits(root)
    tiers = {id: evidence_tier(root, header, tier) for id, header in headers.items()}
    rows = [decided(claim, headers[claim["exhibit"]], tiers[claim["exhibit"]], out) for claim in load(root)]
    write_json(out / "claims.json", rows)
    write_text(out / "claims.md", table(rows, tier))
    kept_files.seal_together(out / "claims", [out / "claims.json", out / "claims.md"])
    return rows


def row(claim: dict, value: dict, tier: str, premise: dict | None = None) -> dict:
    """One row of claims.json. Of a claim about several settings at once the mean over them is the headline, and `worst`
    the one that the rule looks at."""
    found, reason = verdict(claim, value, tier, premise)
    headline = value.get("pooled") or value
    interval = ends(headline)
    range_ = headline.get("range") or ("95 %" if interval else None)
    if headline is not value:
        range_ = f"95 % of the mean over {len(value['parts'])} settings; the rule looks at each of them"
    return {
        "id": claim["id"],
        "paper": claim["paper"],
        "place": claim["place"],
        "statement": claim["statement"],
        "published": claim["published"],
        "ours": headline.get("value"),
        "interval": interval,
        "interval_is": range_,
        "worst": None if headline is value else {"value": value["value"], "interval": ends(value)},
        "settings": value.get("settings"),
        "n": headline.get("n"),
        "unit": headline.get("unit"),
        "tier": tier,
        "verdict": found,
        "reason": reason,
        "rule": claim["rule"],
        "rule_reason": claim["reason"],
        "entered": claim["entered"],
        "decides": claim["decides"],
        "simulated": claim.get("simulated", False),
        "exhibit": claim["exhibit"],
    }


def ends(value: dict) -> list[float] | None:
    """[low, high] of a value; None without an interval."""
    return None if value.get("low") is None else [value["low"], value["high"]]


def number(value) -> str:
    """Four significant digits, six from 1 on; whole numbers as they are, text unchanged."""
    if value is None:
        return "–"
    if isinstance(value, str | int):
        return str(value)
    return f"{value:.4g}" if abs(value) < 1 else f"{value:.6g}"


def shown_value(row: dict) -> str:
    """'0.0051 [0.0012, 0.0090] nat'; an interval of width w is shown to two digits of w. Of several settings the mean, and
    the one that the rule looks at: 'mean of 3: 0.010 [0.002, 0.018] nat; worst 0.020 [0.012, 0.030]'."""
    unit = f" {row['unit']}" if row["unit"] and row["ours"] is not None else ""
    if row.get("worst"):
        worst = with_interval(row["worst"]["value"], row["worst"]["interval"])
        of = f" of {row['settings']}:" if row.get("settings") else ""  # reports of an earlier version have none
        return f"mean{of} {with_interval(row['ours'], row['interval'])}{unit}; worst {worst}"
    return with_interval(row["ours"], row["interval"]) + unit + (", one setting" if row.get("settings") == 1 else "")


def with_interval(value, interval: list[float] | None) -> str:
    """A number and its interval, both to two digits of the interval's width."""
    if not interval:
        return number(value)
    low, high = interval
    digits = 4 if high <= low else min(8, max(0, 1 - math.floor(math.log10(high - low))))
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def table(rows: list[dict], tier: str) -> str:
    """claims.md: one line per claim."""
    counts = ", ".join(f"{sum(r['verdict'] == v for r in rows)} {word}" for v, word in WORDS.items())
    columns = ["claim", "place", "published", "ours", "n", "verdict", "why", "exhibit"]
    body = []
    for r in rows:
        published = f"{number(r['published']['value'])} {r['published']['unit'] or ''}".strip()
        n = "" if r["n"] is None else str(r["n"])
        cells = [r["statement"], r["place"], published, shown_value(r), n]
        body.append([*cells, WORDS[r["verdict"]], r["reason"], r["exhibit"]])
    return markdown(
        f"Claims at tier {tier}: {counts}. Intervals are 95 % unless the exhibit says otherwise.", columns, body
    )
