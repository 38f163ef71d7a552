"""Which keys of the recipe the code reads: attributes of its sections, by the types that annotations give.

A type is the set of classes that an annotation names, so that a list of sections, one of them and an optional one are
the same. Names get their type from annotations, assignments, loops and `with`; attributes from the classes; calls
from what the function returns. What cannot be told is no read: a key that is read in a way that nobody can follow
is a key to write more plainly.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel

Types = frozenset[str]
NOTHING: Types = frozenset()


@dataclass
class Code:
    """The classes and functions of some files: attribute -> type, and what is returned."""

    attributes: dict[str, dict[str, Types]] = field(default_factory=dict)
    bases: dict[str, list[str]] = field(default_factory=dict)
    returns: dict[str, Types] = field(default_factory=dict)

    def attribute(self, owner: str, name: str) -> Types:
        known = self.attributes.get(owner, {})
        return known[name] if name in known else frozenset().union(
            *(self.attribute(base, name) for base in self.bases.get(owner, ()) if base != owner))


def reads(paths: Iterable[Path], schema: Iterable[Path]) -> set[tuple[str, str]]:
    """(class, attribute) of every attribute that the files read, of classes in them or in the schema's files."""
    trees = [ast.parse(path.read_text("utf-8")) for path in paths]
    code = Code()
    for tree in [*trees, *(ast.parse(path.read_text("utf-8")) for path in schema)]:
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                _declare(code, node)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                code.returns[node.name] = code.returns.get(node.name, NOTHING) | _names(node.returns)
    found: set[tuple[str, str]] = set()
    for _ in range(2):  # the second time with what the first has learnt of `self.x = ...`
        for tree in trees:
            _Reader(code, found).visit(tree)
    return found


def unread(root: type[BaseModel], found: set[tuple[str, str]]) -> list[str]:
    """Class.key of the keys that nobody reads; a read of a section's base counts for all that inherit it."""
    return [f"{kind.__name__}.{name}" for kind in sections(root) for name in kind.model_fields
            if not any((base.__name__, name) in found for base in kind.__mro__)]


def sections(root: type[BaseModel]) -> list[type[BaseModel]]:
    """A section and all below it."""
    from llm_detox.recipe.base import types_in

    known: list[type[BaseModel]] = []
    waiting = [root]
    while waiting:
        kind = waiting.pop()
        if kind not in known:
            known.append(kind)
            waiting += [inner for value in kind.model_fields.values() for inner in types_in(value.annotation)
                        if issubclass(inner, BaseModel)]
    return known


def _declare(code: Code, node: ast.ClassDef) -> None:
    code.bases[node.name] = [base.id for base in node.bases if isinstance(base, ast.Name)]
    known = code.attributes.setdefault(node.name, {})
    for line in node.body:
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
            known[line.target.id] = _names(line.annotation)
        elif isinstance(line, ast.FunctionDef) and any(
                isinstance(one, ast.Name) and one.id.endswith("property") for one in line.decorator_list):
            known[line.name] = _names(line.returns)


def _names(annotation: ast.AST | None) -> Types:
    """The classes that an annotation names."""
    if annotation is None:
        return NOTHING
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        annotation = ast.parse(annotation.value, mode="eval")
    return frozenset(node.id for node in ast.walk(annotation) if isinstance(node, ast.Name))


class _Reader(ast.NodeVisitor):
    """Walks through a file with the types of the names in scope."""

    def __init__(self, code: Code, found: set[tuple[str, str]]) -> None:
        self._code, self._found = code, found
        self._scopes: list[dict[str, Types]] = [{}]
        self._class = ""

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        outer, self._class = self._class, node.name
        self.generic_visit(node)
        self._class = outer

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        scope = {one.arg: _names(one.annotation)
                 for one in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)}
        if self._class and node.args.args and node.args.args[0].arg in ("self", "cls"):
            scope[node.args.args[0].arg] = frozenset({self._class})
        self._scopes.append(scope)
        for line in node.body:
            self.visit(line)
        self._scopes.pop()

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        for target in node.targets:
            self._bind(target, node.value)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self.generic_visit(node)
        self._bind(node.target, node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.generic_visit(node)
        if isinstance(node.target, ast.Name):
            self._scopes[-1][node.target.id] = _names(node.annotation)

    def visit_For(self, node: ast.For) -> None:
        self._bind(node.target, node.iter)
        self.generic_visit(node)

    def visit_With(self, node: ast.With) -> None:
        for item in node.items:
            if item.optional_vars is not None:
                self._bind(item.optional_vars, item.context_expr)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        self._bind(node.target, node.iter)
        self.generic_visit(node)

    def _comprehension(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> None:
        for generator in node.generators:  # their names are needed by what stands before them
            self.visit(generator)
        self.generic_visit(node)

    visit_ListComp = visit_SetComp = visit_GeneratorExp = visit_DictComp = _comprehension

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if isinstance(node.ctx, ast.Load):
            self._found |= {(owner, node.attr) for owner in self._type(node.value)}
        self.generic_visit(node)

    def _bind(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Tuple):
            values = value.elts if isinstance(value, ast.Tuple) and len(value.elts) == len(target.elts) else [
                value] * len(target.elts)
            for part, inner in zip(target.elts, values, strict=True):
                self._bind(part, inner)
        elif isinstance(target, ast.Name):
            self._scopes[-1][target.id] = self._type(value)
        elif isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self":
            known = self._code.attributes.setdefault(self._class, {})
            known[target.attr] = known.get(target.attr, NOTHING) | self._type(value)

    def _type(self, node: ast.expr) -> Types:
        if isinstance(node, ast.Name):
            return next((scope[node.id] for scope in reversed(self._scopes) if node.id in scope), NOTHING)
        if isinstance(node, ast.Attribute):
            return frozenset().union(*(self._code.attribute(owner, node.attr) for owner in self._type(node.value)))
        if isinstance(node, ast.Call):
            return self._call(node)
        return frozenset().union(*map(self._type, _parts(node)))

    def _call(self, node: ast.Call) -> Types:
        """What a class makes or a function returns; what is handed through others (enumerate, track) stays itself."""
        name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr if isinstance(
            node.func, ast.Attribute) else ""
        if name in self._code.attributes:
            return frozenset({name})
        if name in self._code.returns:
            return self._code.returns[name]
        if name == "model_copy" and isinstance(node.func, ast.Attribute):
            return self._type(node.func.value)
        return frozenset().union(*map(self._type, node.args))


def _parts(node: ast.expr) -> Iterator[ast.expr]:
    """The expressions that a value may be, or be taken from."""
    if isinstance(node, ast.BoolOp):
        yield from node.values
    elif isinstance(node, ast.IfExp):
        yield from (node.body, node.orelse)
    elif isinstance(node, ast.List | ast.Tuple | ast.Set):
        yield from node.elts
    elif isinstance(node, ast.Dict):
        yield from node.values
    elif isinstance(node, ast.BinOp):
        yield from (node.left, node.right)
    elif isinstance(node, ast.Subscript | ast.Starred | ast.NamedExpr | ast.Await):
        yield node.value
    elif isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp):
        yield node.elt
    elif isinstance(node, ast.DictComp):
        yield node.value
