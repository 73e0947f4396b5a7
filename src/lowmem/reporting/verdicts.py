"""What a number says about a claim, under the rule that the claim has in workflow/config/claims/.

At a tier that the claim names in `decides`: reproduced = the interval lies inside the rule; direction_only = right sign,
other size; contradicted = on the other side. At any other tier nothing is final: same_direction or opposite_here.
A simulation decides nothing about a measurement: simulated_fits or simulated_differs. not_testable: a premise of the
claim (its `gate`) does not hold here, whether its runs were made or left out for that. inconclusive: the interval covers
both sides, or nothing may be concluded. not_run: no record.

A claim "at every size" holds if the interval of every size is inside the rule, which needs no correction. It fails if
one size is outside, and that is tested with Holm's correction: of many sizes one is outside its interval by chance.
"""

import math

from lowmem.reporting.values import is_result

WORDS = {
    "reproduced": "reproduced",
    "direction_only": "right sign, other size",
    "contradicted": "contradicted",
    "same_direction": "same direction here",
    "opposite_here": "opposite here",
    "simulated_fits": "simulated: fits",
    "simulated_differs": "simulated: does not fit",
    "inconclusive": "inconclusive",
    "not_testable": "not testable here",
    "not_run": "not run",
}


def verdict(claim: dict, value: dict, tier: str, premise: dict | None = None) -> tuple[str, str]:
    """(verdict, why) of a value under a claim's rule at a tier.

    value: {"value", "low"?, "high"?, "n"?, "method"?, "parts"?, "reason"?, "failed"?}; without "n" and interval it is exact,
    with "n" and no interval nothing can be said. premise: the value of the claim's gate, where it has one.
    """
    decides = tier in claim["decides"]
    if value.get("value") is None:
        found, why = absent(value, decides)
    else:
        found, why = judged(claim["rule"], value, decides)
    if tier == "smoke":
        return (found, why) if found == "not_run" else ("inconclusive", "smoke tier decides nothing")
    if found == "not_run":
        gone = refuted(claim["gate"], premise or {}) if "gate" in claim else None
        return ("not_testable", gone) if gone else (found, why)
    if recalled(claim["published"]):
        return "inconclusive", "the published value is recalled, not confirmed: it decides nothing"
    known = value.get("value") is not None
    if tier in claim.get("demonstration", ()):
        return "not_testable", f"a demonstration at tier {tier}: so few examples carry no verdict"
    asked = "gate" in claim and (known or value.get("failed") == "subject")
    if asked and (failure := closed(claim["gate"], premise or {})):
        return "not_testable", failure
    if known and value.get("busy"):
        return "inconclusive", f"{value['busy']}: such a time decides nothing"
    if claim.get("simulated") and known:
        return simulated(claim["rule"], value)
    return found, why


def recalled(published: dict) -> bool:
    """Whether a published value rests on memory alone or first of all."""
    return published["source"].strip().lower().startswith("memory")


def absent(value: dict, decides: bool) -> tuple[str, str]:
    """The verdict on a value that could not be had: a subject that broke alone is a result, anything else is none."""
    why = value.get("reason") or "not run: no record"
    if value.get("failed") == "subject":
        return "contradicted" if decides else "opposite_here", f"{why}, while the baseline finished"
    if value.get("failed") or is_result(why):
        return "inconclusive", why
    return "not_run", why


def judged(rule: dict, value: dict, decides: bool) -> tuple[str, str]:
    """(verdict, why) of a number."""
    if single(value):
        return "inconclusive", f"n = {value['n']}: one run has no interval"
    inside, claimed, other = sides(rule, value)
    if inside:
        if decides:
            return "reproduced", f"meets the rule: {words(rule)}"
        return "same_direction", f"inside the rule ({words(rule)}); this tier is too small to confirm it"
    if claimed:
        size = "other size than the rule" if outside(rule, value) else "size still open, the rule is"
        return "direction_only" if decides else "same_direction", f"right sign, {size}: {words(rule)}"
    if other:
        where = "on the other side of no effect" if "direction" in rule else f"outside the rule: {words(rule)}"
        return "contradicted" if decides else "opposite_here", where + (
            "" if decides else "; this tier decides nothing"
        )
    if "direction" in rule and outside(rule, value):
        return "inconclusive", "the interval covers both sides of no effect"
    return "inconclusive", f"the interval covers both sides of the rule: {words(rule)}"


def simulated(rule: dict, value: dict) -> tuple[str, str]:
    """(verdict, why) of a simulated number beside a measured one: it may fit or not, and settles neither."""
    inside, claimed, _ = sides(rule, value)
    if inside:
        return "simulated_fits", f"inside the rule ({words(rule)}), by simulation"
    if not outside(rule, value):
        return "inconclusive", f"simulated; the range covers both sides of the rule: {words(rule)}"
    size = "right sign, other size than the rule" if claimed else "outside the rule"
    return "simulated_differs", f"{size} ({words(rule)}), by simulation; only a measurement can contradict one"


def closed(gate: dict, premise: dict) -> str | None:
    """Why a claim cannot be tested: its premise, with the premise's own number. None where the premise holds.

    gate["must"]: "hold" asks that the premise is shown, "not_fail" only that it is not refuted.
    """
    if gate["must"] == "not_fail" and (premise.get("value") is None or single(premise)):
        return None
    if premise.get("value") is None:
        return f"premise not known here ({gate['premise']}): {premise.get('reason') or 'not run: no record'}"
    if single(premise):
        return f"premise not shown ({gate['premise']}): n = {premise['n']}, one run has no interval"
    inside, _, _ = sides(gate["rule"], premise)
    if inside or (gate["must"] == "not_fail" and not outside(gate["rule"], premise)):
        return None
    return failing(gate, premise, "fails" if outside(gate["rule"], premise) else "not shown")


def refuted(gate: dict, premise: dict) -> str | None:
    """Why a premise is shown not to hold, with its own number; None where it holds, or nothing is shown."""
    if premise.get("value") is None or single(premise) or not outside(gate["rule"], premise):
        return None
    return failing(gate, premise, "fails")


def failing(gate: dict, premise: dict, how: str) -> str:
    """The sentence on a premise that "fails", or is "not shown"."""
    return f"premise {how} ({gate['premise']}): {as_words(premise)}, needed {words(gate['rule'])}"


def single(value: dict) -> bool:
    """Whether a value has a number of runs but no interval."""
    return value.get("n") is not None and value.get("low") is None


def as_words(value: dict) -> str:
    """'0.128 [0.08, 0.19] nat'."""
    interval = "" if value.get("low") is None else f" [{value['low']:.3g}, {value['high']:.3g}]"
    return f"{value['value']:.3g}{interval} {value.get('unit') or ''}".strip()


# -- the rule --------------------------------------------------------------------------------------------------------


def bounds(rule: dict) -> tuple[float, float]:
    """The accepted region as (low, high)."""
    target, margin = rule["target"], rule.get("margin", 0)
    if rule["kind"] == "within":
        return target - rule["tolerance"], target + rule["tolerance"]
    if rule["kind"] == "between":
        return tuple(target)
    return (-math.inf, target + margin) if rule["kind"] == "less" else (target - margin, math.inf)


def sides(rule: dict, value: dict) -> tuple[bool, bool, bool]:
    """(inside the rule, on the claimed side, on the other side): of `neutral` where the rule names one, else of the
    region itself. The bound of less and greater is not inside."""
    low, high = interval(value)
    accepted_low, accepted_high = bounds(rule)
    if rule["kind"] == "less":
        inside = high < accepted_high
    elif rule["kind"] == "greater":
        inside = low > accepted_low
    else:
        inside = accepted_low <= low and high <= accepted_high
    if rule.get("direction") == "greater":
        return inside, low > rule["neutral"], below(value, rule["neutral"])
    if rule.get("direction") == "less":
        return inside, high < rule["neutral"], above(value, rule["neutral"])
    return inside, inside, outside(rule, value)


def outside(rule: dict, value: dict) -> bool:
    """Whether the value, or one of its parts after Holm's correction, is shown to lie outside the accepted region."""
    accepted_low, accepted_high = bounds(rule)
    if rule["kind"] == "less":
        return above(value, accepted_high)
    if rule["kind"] == "greater":
        return below(value, accepted_low)
    return below(value, accepted_low, strict=True) or above(value, accepted_high, strict=True)


def above(value: dict, bound: float, strict: bool = False) -> bool:
    """Whether the value, or one of its parts after Holm's correction, is shown to be above a bound or, unless strict, on it."""
    if value.get("parts"):
        return any_beyond(value["parts"], bound)
    low, _ = interval(value)
    return low > bound if strict else low >= bound


def below(value: dict, bound: float, strict: bool = False) -> bool:
    """As above, for below."""
    if value.get("parts"):
        return any_beyond(value["parts"], bound, below=True)
    _, high = interval(value)
    return high < bound if strict else high <= bound


def interval(value: dict) -> tuple[float, float]:
    """(low, high); an exact value is its own interval."""
    low, high = value.get("low"), value.get("high")
    return (value["value"], value["value"]) if low is None or high is None else (low, high)


def any_beyond(parts: list[dict], bound: float, below: bool = False) -> bool:
    """Whether one of several parts is above (or below) a bound after Holm's correction."""
    from lowmem.analysis.stats import Estimate, chance, holm, turned  # numpy, which the list of claims needs not

    estimates = [Estimate(*(part[key] for key in ("value", "low", "high", "n", "method"))) for part in parts]
    return any(holm([chance(turned(e), -bound) if below else chance(e, bound) for e in estimates]))


def words(rule: dict) -> str:
    """The accepted region for a reader: 'below 0.02', '0.495 to 0.505'."""
    low, high = bounds(rule)
    if math.isinf(low):
        return f"below {high:g}"
    if math.isinf(high):
        return f"above {low:g}"
    return f"{low:g} to {high:g}"


def impossible(rule: dict) -> str | None:
    """Why no number could decide a rule; None for a rule that one can."""
    numbers = [number for key in ("target", "tolerance", "margin", "neutral") for number in listed(rule.get(key))]
    if not all(map(math.isfinite, numbers)):
        return "its numbers are not all finite"
    low, high = bounds(rule)
    if low > high:
        return f"no number lies between {low:g} and {high:g}"
    if rule.get("direction") == "greater" and low <= rule["neutral"]:
        return f"the accepted region ({words(rule)}) is not above its neutral {rule['neutral']:g}"
    if rule.get("direction") == "less" and high >= rule["neutral"]:
        return f"the accepted region ({words(rule)}) is not below its neutral {rule['neutral']:g}"
    return None


def listed(value) -> list:
    """A value as a list, [] for None."""
    return [] if value is None else value if isinstance(value, list) else [value]
