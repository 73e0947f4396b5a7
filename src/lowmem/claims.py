"""From exhibit values to verdicts. Rules stand in workflow/config/claims.yaml, written before any run.

Verdicts: reproduced = interval inside the rule, at a tier that may decide; direction_only = on the claimed side, but at
a smaller scale or with another size; contradicted = on the other side; inconclusive = covers both, or nothing may be
concluded; not_run = no record. A published value that is only recalled decides nothing, and neither does smoke.
"""

import math
from pathlib import Path

from lowmem import experiments, kept_files, plan
from lowmem.errors import Misuse, nearest
from lowmem.exhibit import markdown
from lowmem.files import read_json, read_yaml, write_json, write_text

VERDICTS = ("reproduced", "direction_only", "contradicted", "inconclusive", "not_run")


def load(root: Path) -> list[dict]:
    """All claims in file order, checked against the schema and the exhibits."""
    path = root / "workflow/config/claims.yaml"
    loaded = read_yaml(path)
    experiments.check(root, loaded, "claim", path)
    claims, exhibits = loaded["claims"], plan.exhibits(root)
    ids = [claim["id"] for claim in claims]
    for claim in claims:
        if ids.count(claim["id"]) > 1:
            raise Misuse(f"{path}: claim {claim['id']!r} stands twice; rename one")
        if claim["exhibit"] not in exhibits:
            raise Misuse(
                f"{path}: {claim['id']}: unknown exhibit {claim['exhibit']!r}{nearest(claim['exhibit'], exhibits)}"
            )
    return claims


def decide(root: Path, id: str, tier: str, out: Path | None = None) -> dict:
    """The row of one claim, from its exhibit's values below `out` (default: reports/<tier>)."""
    claims = {claim["id"]: claim for claim in load(root)}
    if id not in claims:
        raise Misuse(f"unknown claim {id!r}{nearest(id, claims)}")
    claim, header = claims[id], plan.exhibits(root)[claims[id]["exhibit"]]
    return row(claim, exhibit_value(claim, header, out or root / "reports" / tier), tier)


def exhibit_value(claim: dict, header: dict, out: Path) -> dict:
    """What a claim's exhibit found: {"value", "low"?, "high"?, "n"?, ...}, or a value of None with its reason."""
    path = out / ("figures" if header["kind"] == "figure" else "tables") / f"{claim['exhibit']}.json"
    if not path.is_file():
        return {"value": None, "reason": f"not run: exhibit {claim['exhibit']} was not made"}
    kept_files.check_together(path.with_suffix(""))
    missing = {"value": None, "reason": f"the exhibit has no value {claim['value']!r}"}
    return read_json(path)["values"].get(claim["value"], missing)


def gather(root: Path, tier: str, out: Path | None = None) -> list[dict]:
    """Decide all claims, in file order, into <out>/claims.json and claims.md (default out: reports/<tier>)."""
    out = out or root / "reports" / tier
    headers = plan.exhibits(root)
    rows = [row(claim, exhibit_value(claim, headers[claim["exhibit"]], out), tier) for claim in load(root)]
    write_json(out / "claims.json", rows)
    write_text(out / "claims.md", table(rows, tier))
    kept_files.seal_together(out / "claims", [out / "claims.json", out / "claims.md"])
    return rows


def row(claim: dict, value: dict, tier: str) -> dict:
    """One row of claims.json."""
    found, reason = verdict(claim, value, tier)
    interval = [value["low"], value["high"]] if value.get("low") is not None else None
    return {
        "id": claim["id"],
        "paper": claim["paper"],
        "place": claim["place"],
        "statement": claim["statement"],
        "published": claim["published"],
        "ours": value.get("value"),
        "interval": interval,
        "interval_is": value.get("range") or ("95 %" if interval else None),
        "n": value.get("n"),
        "unit": value.get("unit"),
        "tier": tier,
        "verdict": found,
        "reason": reason,
        "rule": claim["rule"],
        "rule_reason": claim["reason"],
        "decides": claim["decides"],
        "exhibit": claim["exhibit"],
    }


def verdict(claim: dict, value: dict, tier: str) -> tuple[str, str]:
    """(verdict, why) of a value under a claim's rule at a tier. value: {"value", "low"?, "high"?, "n"?, "reason"?,
    "failed"?}; without "n" and interval it is exact, with "n" and no interval nothing can be said."""
    found, reason = unlimited(claim["rule"], value, tier in claim["decides"])
    if found == "not_run":
        return found, reason
    if tier == "smoke":
        return "inconclusive", "smoke tier decides nothing"
    if recalled(claim["published"]):
        return "inconclusive", "the published value is recalled, not confirmed: it decides nothing"
    return found, reason


def recalled(published: dict) -> bool:
    """Whether a published value rests on memory alone or first of all."""
    return published["source"].strip().lower().startswith("memory")


def unlimited(rule: dict, value: dict, decides: bool) -> tuple[str, str]:
    """The verdict before smoke and recalled values are capped."""
    if value.get("value") is None:
        why = value.get("reason") or "not run: no record"
        if value.get("failed") == "subject":
            return "contradicted", f"{why}, while the baseline finished"
        if value.get("failed") or "diverged" in why or "out of memory" in why:
            return "inconclusive", why
        return "not_run", why
    low, high = value.get("low"), value.get("high")
    if low is None or high is None:
        if value.get("n") is not None:
            return "inconclusive", f"n = {value['n']}: one run has no interval"
        low = high = value["value"]
    inside, outside = place(rule, low, high)
    if inside and decides:
        return "reproduced", f"meets the rule: {words(rule)}"
    claimed, other = side(rule, low, high, inside, outside)
    if claimed:
        return "direction_only", "on the claimed side" + ("" if decides else "; this tier cannot confirm the size")
    if other:
        return "contradicted", "on the other side" if "direction" in rule else f"does not meet the rule: {words(rule)}"
    if not inside and not outside:
        return "inconclusive", f"the interval covers both sides of the rule: {words(rule)}"
    return "inconclusive", "the interval covers both sides of no effect"


def bounds(rule: dict) -> tuple[float, float]:
    """The accepted region as (low, high)."""
    target, margin = rule["target"], rule.get("margin", 0)
    if rule["kind"] == "within":
        return target - rule["tolerance"], target + rule["tolerance"]
    if rule["kind"] == "between":
        return tuple(target)
    return (-math.inf, target + margin) if rule["kind"] == "less" else (target - margin, math.inf)


def place(rule: dict, low: float, high: float) -> tuple[bool, bool]:
    """(interval wholly inside the accepted region, wholly outside it); the bound of less and greater is not inside."""
    accepted_low, accepted_high = bounds(rule)
    if rule["kind"] == "less":
        return high < accepted_high, low >= accepted_high
    if rule["kind"] == "greater":
        return low > accepted_low, high <= accepted_low
    return accepted_low <= low and high <= accepted_high, high < accepted_low or accepted_high < low


def side(rule: dict, low: float, high: float, inside: bool, outside: bool) -> tuple[bool, bool]:
    """(on the claimed side, on the other side): of `neutral` where the rule names one, else of the region itself."""
    if "direction" not in rule:
        return inside, outside
    if rule["direction"] == "greater":
        return low > rule["neutral"], high <= rule["neutral"]
    return high < rule["neutral"], low >= rule["neutral"]


def words(rule: dict) -> str:
    """The accepted region for a reader: 'below 0.02', '0.495 to 0.505'."""
    low, high = bounds(rule)
    if math.isinf(low):
        return f"below {high:g}"
    if math.isinf(high):
        return f"above {low:g}"
    return f"{low:g} to {high:g}"


def number(value) -> str:
    """Four significant digits at least, whole numbers as they are, text unchanged."""
    if value is None:
        return "–"
    if isinstance(value, str | int):
        return str(value)
    return (
        f"{value:.4f}" if 1e-3 <= abs(value) < 1 or value == 0 else f"{value:.4g}" if abs(value) < 1 else f"{value:.6g}"
    )


def shown_value(row: dict) -> str:
    """'0.0051 [0.0012, 0.0090] nat'; an interval of width w is shown to two digits of w."""
    unit = f" {row['unit']}" if row["unit"] and row["ours"] is not None else ""
    if not row["interval"]:
        return number(row["ours"]) + unit
    low, high = row["interval"]
    digits = 4 if high <= low else min(8, max(0, 1 - math.floor(math.log10(high - low))))
    return f"{row['ours']:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]" + unit


def table(rows: list[dict], tier: str) -> str:
    """claims.md: one line per claim."""
    counts = ", ".join(f"{sum(r['verdict'] == v for r in rows)} {v.replace('_', ' ')}" for v in VERDICTS)
    columns = ["claim", "place", "published", "ours", "n", "verdict", "why", "exhibit"]
    body = []
    for r in rows:
        published = f"{number(r['published']['value'])} {r['published']['unit'] or ''}".strip()
        n = "" if r["n"] is None else str(r["n"])
        cells = [r["statement"], r["place"], published, shown_value(r), n]
        body.append([*cells, r["verdict"].replace("_", " "), r["reason"], r["exhibit"]])
    return markdown(
        f"Claims at tier {tier}: {counts}. Intervals are 95 % unless the exhibit says otherwise.", columns, body
    )
