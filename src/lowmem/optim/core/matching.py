"""Which saved entry belongs to which parameter, and the settings that a group takes from a state's groups.

By name where both sides have the same names, whatever groups these stand in; else in order, where the groups have the same
sizes. Where groups differ, a group has the settings its parameters were saved with, if they were saved with the same.
"""

from __future__ import annotations

import warnings

from torch import nn

from lowmem.optim.core.hyperparameters import plain_name

STORAGE = ("rounding", "state_dtype")  # how this optimizer keeps its numbers, whatever another one did
OWN = ("params", "param_names", "blocks", "state_code")  # of a group, but no settings

Match = tuple[int, dict, nn.Parameter]  # (number in the saved state, the group it was saved in, parameter)


def matched(optimizer, saved: dict, source: str) -> list[list[Match]]:
    """For each of this optimizer's groups what belongs to it. ValueError, naming both sides, where nobody can tell."""
    theirs, ours = saved["param_groups"], optimizer.param_groups
    old, new = [_names(group) for group in theirs], [_names(group) for group in ours]
    where = {name: (i, group) for names, group in zip(old, theirs) for name, i in zip(names, group["params"])}
    here = {name: p for names, group in zip(new, ours) for name, p in zip(names, group["params"])}
    named = len(where) == sum(len(g["params"]) for g in theirs) and len(here) == sum(len(g["params"]) for g in ours)
    same_sizes = [len(group["params"]) for group in theirs] == [len(group["params"]) for group in ours]
    crossed = named and any(a != b and a in here for a, b in zip(where, here))
    if same_sizes and not crossed:
        return [[(i, a, p) for i, p in zip(a["params"], b["params"])] for a, b in zip(theirs, ours)]
    sides = f"the state of {source} has {_counts(theirs)}, this {optimizer.known_as()} {_counts(ours)}"
    if not named:
        raise ValueError(
            f"{sides}, and without names on both sides nobody knows which is which; build it with the same groups (with "
            "model=, blocks stay known), or save from an optimizer of model.named_parameters()"
        )
    lost = next((name for name, (i, _) in where.items() if name not in here and saved["state"].get(i)), None)
    fresh = next((name for name, p in here.items() if name not in where and p.requires_grad), None)
    if lost or fresh:
        missing = f"{lost} is not in this optimizer" if lost else f"{fresh} is not in the saved state"
        raise ValueError(f"{sides}: {missing}")
    return [
        [(*where[name], p) for name, p in zip(names, group["params"]) if name in where]
        for names, group in zip(new, ours)
    ]


def saved_settings(optimizer, theirs: list[dict], matches: list[list[Match]]) -> list[dict]:
    """For each of this optimizer's groups the saved settings, as one saved group.

    ValueError for parameters of one group that were saved with different settings. What this optimizer's groups tell apart
    and the saved ones did not stays as it is, with a warning.
    """
    ours = optimizer.param_groups
    sources = [list({id(group): group for _, group, _ in members}.values()) for members in matches]
    if len(theirs) == len(ours) and all(found in ([], [group]) for found, group in zip(sources, theirs)):
        return theirs
    for members in matches:
        _check_alike(optimizer, members)
    told_apart = set()
    for found, live in zip(sources, ours):
        drawn = {id(group) for group in found}
        others = [other for more, other in zip(sources, ours) if drawn & {id(group) for group in more}]
        told_apart |= {key for key in _settings(optimizer) for other in others if other[key] != live[key]}
    if told_apart:
        warnings.warn(
            f"{optimizer.known_as()}: its groups differ in {', '.join(sorted(told_apart))}, those of the saved state do "
            "not; these stay as they are",
            stacklevel=5,
        )
    return [
        {key: value for key, value in (found or [live])[0].items() if key not in told_apart}
        for found, live in zip(sources, ours)
    ]


def _check_alike(optimizer, members: list[Match]) -> None:
    first = members[0][1] if members else {}
    for _, group, p in members:
        for key in (*_settings(optimizer), "initial_lr"):
            if group.get(key) != first.get(key):
                a, b = optimizer.name(members[0][2]), optimizer.name(p)
                raise ValueError(
                    f"{a} was saved with {key}={first.get(key)!r} and {b} with {group.get(key)!r}, and this "
                    f"{optimizer.known_as()} has both in one group; build it with groups that tell them apart"
                    + (" (or no_decay=)" if key == "weight_decay" else "")
                )


def _settings(optimizer) -> list[str]:
    return [key for key in optimizer.defaults if key not in STORAGE]


def _names(group: dict) -> list[str]:
    return [plain_name(name) for name in group.get("param_names") or ()]


def _counts(groups: list[dict]) -> str:
    sizes = [len(group["params"]) for group in groups]
    return f"{len(sizes)} parameter group{'s' * (len(sizes) != 1)} of {', '.join(map(str, sizes)) or 'nothing'}"
