"""Which saved entry belongs to which parameter, and the settings that a group takes from a state's groups.

By name where both sides have the same names, in whatever groups; else in order, where the groups have the same sizes. Where
groups differ, a group takes the settings its parameters were saved with, if these agree.
"""

from __future__ import annotations

import warnings

from torch import nn

from lowmem.optim.core.hyperparameters import plain_name

STORAGE = ("rounding", "state_dtype")  # how this optimizer stores its numbers, whatever the saved one did
OWN = ("params", "param_names", "blocks", "state_code")  # keys of a group that are not settings

Match = tuple[int, dict, nn.Parameter]  # (number in the saved state, the group it was saved in, parameter)


def matched(optimizer, saved: dict, source: str) -> list[list[Match]]:
    """The saved entries that belong to each of this optimizer's groups. ValueError, naming both sides, if ambiguous."""
    saved_groups, live_groups = saved["param_groups"], optimizer.param_groups
    saved_names, live_names = [_names(group) for group in saved_groups], [_names(group) for group in live_groups]
    saved_by_name = {
        name: (i, group) for names, group in zip(saved_names, saved_groups) for name, i in zip(names, group["params"])
    }
    live_by_name = {name: p for names, group in zip(live_names, live_groups) for name, p in zip(names, group["params"])}
    named = len(saved_by_name) == sum(len(g["params"]) for g in saved_groups) and len(live_by_name) == sum(
        len(g["params"]) for g in live_groups
    )
    same_sizes = [len(group["params"]) for group in saved_groups] == [len(group["params"]) for group in live_groups]
    reordered = named and any(a != b and a in live_by_name for a, b in zip(saved_by_name, live_by_name))
    if same_sizes and not reordered:
        return [[(i, a, p) for i, p in zip(a["params"], b["params"])] for a, b in zip(saved_groups, live_groups)]
    sides = f"the state of {source} has {_counts(saved_groups)}, this {optimizer.known_as()} {_counts(live_groups)}"
    if not named:
        raise ValueError(
            f"{sides}, and without names on both sides parameters cannot be matched; build it with the same groups (with "
            "model=, so that blocks stay known), or save from an optimizer of model.named_parameters()"
        )
    lost = next(
        (name for name, (i, _) in saved_by_name.items() if name not in live_by_name and saved["state"].get(i)), None
    )
    unsaved = next((name for name, p in live_by_name.items() if name not in saved_by_name and p.requires_grad), None)
    if lost or unsaved:
        missing = f"{lost} is not in this optimizer" if lost else f"{unsaved} is not in the saved state"
        raise ValueError(f"{sides}: {missing}")
    return [
        [(*saved_by_name[name], p) for name, p in zip(names, group["params"]) if name in saved_by_name]
        for names, group in zip(live_names, live_groups)
    ]


def saved_settings(optimizer, theirs: list[dict], matches: list[list[Match]]) -> list[dict]:
    """For each of this optimizer's groups the saved settings, as one saved group.

    ValueError for parameters of one group that were saved with different settings. What this optimizer's groups tell apart
    and the saved ones did not stays as it is, with a warning.
    """
    live_groups = optimizer.param_groups
    sources = [list({id(group): group for _, group, _ in members}.values()) for members in matches]
    if len(theirs) == len(live_groups) and all(found in ([], [group]) for found, group in zip(sources, theirs)):
        return theirs
    for members in matches:
        _check_alike(optimizer, members)
    distinct = set()
    for found, live in zip(sources, live_groups):
        found_ids = {id(group) for group in found}
        others = [other for more, other in zip(sources, live_groups) if found_ids & {id(group) for group in more}]
        distinct |= {key for key in _settings(optimizer) for other in others if other[key] != live[key]}
    if distinct:
        warnings.warn(
            f"{optimizer.known_as()}: its groups differ in {', '.join(sorted(distinct))}, those of the saved state do "
            "not; these settings are not loaded",
            stacklevel=5,
        )
    return [
        {key: value for key, value in (found or [live])[0].items() if key not in distinct}
        for found, live in zip(sources, live_groups)
    ]


def _check_alike(optimizer, members: list[Match]) -> None:
    first = members[0][1] if members else {}
    for _, group, p in members:
        for key in (*_settings(optimizer), "initial_lr"):
            if group.get(key) != first.get(key):
                a, b = optimizer.name(members[0][2]), optimizer.name(p)
                raise ValueError(
                    f"{a} was saved with {key}={first.get(key)!r} and {b} with {group.get(key)!r}, and this "
                    f"{optimizer.known_as()} has both in one group; build it with a group for each of them"
                    + (" (or no_decay=)" if key == "weight_decay" else "")
                )


def _settings(optimizer) -> list[str]:
    return [key for key in optimizer.defaults if key not in STORAGE]


def _names(group: dict) -> list[str]:
    return [plain_name(name) for name in group.get("param_names") or ()]


def _counts(groups: list[dict]) -> str:
    sizes = [len(group["params"]) for group in groups]
    return f"{len(sizes)} parameter group{'s' * (len(sizes) != 1)} of {', '.join(map(str, sizes)) or 'nothing'}"
