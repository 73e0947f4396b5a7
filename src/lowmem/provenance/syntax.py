"""Python source as text that stays the same while what it computes does: what provenance.py hashes.

Comments, docstrings, import statements, formatting and the texts of messages are left out; a name from outside a function is
written as the place it comes from, one that a function binds by a number. Not by ast.dump or ast.unparse, whose output
depends on the version of Python.
"""

import ast
import re
from collections.abc import Callable, Iterator

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
# Calls whose texts are messages
TELLS = re.compile(r"warnings\.warn|lowmem\.progress\.say|.+\.log\.(debug|info|warning|error)")


class Scope:
    """What names mean at a place in a module.

    known: {name: the place it comes from, None for a local variable}; labels: {local variable: what is written for it};
    depth: functions around the place.
    """

    def __init__(self, known: dict[str, str | None], labels: dict[str, str] | None = None, depth: int = 0):
        self.known, self.labels, self.depth = known, labels or {}, depth

    def inside(self, node) -> "Scope":
        """The scope of a function's body. Parameters keep their names, which callers may write; other variables get numbers."""
        parameters = {one.arg for one in ast.walk(node.args) if isinstance(one, ast.arg)}
        shared = {name for one in ast.walk(node) if isinstance(one, (ast.Global, ast.Nonlocal)) for name in one.names}
        bound = bindings(node.body if isinstance(node.body, list) else [node.body])
        local = [name for name, source in bound.items() if source is None and name not in parameters | shared]
        labels = {name: label for name, label in self.labels.items() if name not in {*bound, *parameters}}
        labels |= {name: f"#{self.depth}.{number}" for number, name in enumerate(local)}
        return Scope({**self.known, **dict.fromkeys(parameters), **bound}, labels, self.depth + 1)

    def within(self, node) -> "Scope":
        """The scope of a class's body, whose names are attributes."""
        bound = bindings(node.body)
        return Scope(self.known, {n: label for n, label in self.labels.items() if n not in bound}, self.depth)


def definitions(tree: ast.Module, module: str, origin: Callable[[str], str]) -> list[tuple[str, str]]:
    """[(dotted name, text)] of a module's statements at top level, in order; of one that binds nothing the name ends in a dot.

    origin: {dotted name as it is now: the one to write in its place}, e.g. that of before a move, as a function.
    """
    known = {name: source or f"{module}.{name}" for name, source in bindings(tree.body).items()}
    found = []
    for node in tree.body:
        pieces: list[str] = []
        write(node, Scope(known), origin, pieces)
        if pieces:
            name = next((name for name, source in bindings([node]).items() if not source), "")
            found.append((origin(f"{module}.{name}") if name else f"{origin(module)}.", "".join(pieces)))
    return found


def statements(body: list) -> Iterator[ast.AST]:
    """All statements of a syntax tree, those inside others too. Unlike ast.walk it leaves out expressions, which are many."""
    for node in body:
        yield node
        for part in ("body", "handlers", "cases", "orelse", "finalbody"):
            yield from statements(getattr(node, part, []))


def bindings(body: list) -> dict[str, str | None]:
    """{name: dotted source of an import, None of anything else} that statements bind in their own scope."""
    found, waiting = {}, list(reversed(body))
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found |= {
                a.asname or a.name.split(".")[0]: a.name if a.asname else a.name.split(".")[0] for a in node.names
            }
        elif isinstance(node, ast.ImportFrom):
            found |= {a.asname or a.name: f"{'.' * node.level}{node.module or ''}.{a.name}" for a in node.names}
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.setdefault(node.name, None)
        elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            found.setdefault(node.id, None)
        elif isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)) and node.name:
            found.setdefault(node.name, None)
        if not isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            waiting += reversed(list(ast.iter_child_nodes(node)))
    return found


def write(node, scope: Scope, origin: Callable[[str], str], pieces: list[str], message: bool = False) -> None:
    """Append a syntax tree as text, without what decides nothing; the same in every version of Python.

    message: the node makes an exception, whose texts are left out.
    """
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return  # a docstring
    if isinstance(node, (ast.Name, ast.Attribute)) and (name := dotted(node, scope.known)):
        pieces.append(f"<{origin(name)}>")
        return
    message = isinstance(node, ast.Call) and (message or bool(TELLS.fullmatch(dotted(node.func, scope.known) or "")))
    pieces.append(type(node).__name__)
    for field in node._fields:
        value = getattr(node, field, None)
        if value is None or value == [] or field in ("ctx", "kind", "type_comment"):
            continue
        if isinstance(node, ast.Constant):
            pieces.append(f"({places(value, origin)!r})")
            continue
        pieces.append(f" {field}(")
        items = value if isinstance(value, list) else [value]
        if isinstance(node, ast.JoinedStr):  # Python 3.12 has empty pieces in an f-string, others have not
            items = [item for item in items if getattr(item, "value", None) != ""]
        if (message and field == "args") or (isinstance(node, ast.Assert) and field == "msg"):
            items = [item for item in items if not is_text(item)]
        inner = scope
        if field == "body" and isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            inner = scope.within(node) if isinstance(node, ast.ClassDef) else scope.inside(node)
        for item in items:
            before = len(pieces)
            if isinstance(item, ast.AST):
                write(item, inner, origin, pieces, message=isinstance(node, ast.Raise))
            else:
                pieces.append(repr(scope.labels.get(item, item) if field in ("id", "name", "rest") else item))
            if len(pieces) > before:
                pieces.append(",")
        pieces.append(")")


def is_text(node: ast.AST) -> bool:
    """Whether an expression is a text as it stands, or one with values filled in."""
    if isinstance(node, ast.BinOp):
        return is_text(node.left) or is_text(node.right)
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def places(value, origin: Callable[[str], str]):
    """A constant; in a text, what names a module or file of this package names where that comes from."""
    if not isinstance(value, str):
        return value
    value = re.sub(r"\blowmem(\.\w+)+", lambda found: origin(found[0]), value)
    return re.sub(
        r"\blowmem/[\w/]+(?=\.py\b)", lambda found: origin(found[0].replace("/", ".")).replace(".", "/"), value
    )


def dotted(node, known: dict[str, str | None]) -> str | None:
    """The place a name or an attribute of one comes from; None for local variables and what belongs to them."""
    if isinstance(node, ast.Name):
        return known.get(node.id)
    inner = dotted(node.value, known) if isinstance(node, ast.Attribute) else None
    return f"{inner}.{node.attr}" if inner else None
