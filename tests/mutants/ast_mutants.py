"""Every small mistake that a function could hold: its mutants, made from its syntax tree.

A mutant is the function with one change: a sign flipped, an operand or a call dropped, an index or
a bound off by one, two arguments exchanged, a comparison moved or turned round, a condition that
always or never holds, a constant changed, a statement left out. Only code objects are exchanged, in
the live module, so that everything that imports the function sees the mistake.

Left out, because no test on one CPU can see them: messages of exceptions, annotations, assertions
for the type checker, ``device=`` and ``strict=``.
"""

from __future__ import annotations

import ast
import inspect
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import CodeType, ModuleType
from typing import Any

from mutation import code_objects, functions_of

OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
# moved by one step, and turned round
COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
EXCHANGED_NAMES = (
    ("better", "worse"),
    ("chosen", "rejected"),
    ("chosen_length", "rejected_length"),
    ("policy", "reference"),
    ("new", "old"),
    ("new", "reference"),
    ("good", "bad"),
    ("low", "high"),
    ("clip_low", "clip_high"),
    ("first", "last"),
    ("first", "rows"),
    ("start", "end"),
    ("begin", "end"),
    ("query", "key"),
    ("key", "value"),
    ("queries", "keys"),
    ("query_index", "key_index"),
    ("own", "prefix"),
    ("length", "prefix_length"),
    ("start", "prefix_start"),
    ("prompt_end", "prompt_length"),
    ("predictor_index", "end_index"),
    ("desirable", "undesirable"),
    ("desirable_weight", "undesirable_weight"),
    ("values", "old_values"),
    ("values", "returns"),
    ("rewards", "values"),
    ("gamma", "lam"),
    ("mean", "variance"),
    ("sums", "lengths"),
    ("logps", "lse"),
    ("total", "count"),
)
EXCHANGED_CALLS = (
    ("min", "max"),
    ("amin", "amax"),
    ("argmin", "argmax"),
    ("minimum", "maximum"),
    ("sum", "mean"),
    ("all", "any"),
    ("exp", "expm1"),
    ("log", "log1p"),
    ("sqrt", "rsqrt"),
    ("sqrt", "square"),
    ("square", "abs"),
    ("softmax", "log_softmax"),
    ("logsigmoid", "sigmoid"),
    ("zeros", "ones"),
    ("zeros_like", "ones_like"),
    ("new_zeros", "new_ones"),
    ("segment_sum", "segment_mean"),
    ("tril", "triu"),
    ("floor", "ceil"),
)
SYMMETRIC = {"min", "max", "minimum", "maximum", "transpose", "promote_types", "array_equal"}
NUMBERS = {"float", "int", "Positive", "NonNegative", "FlipRate"}  # annotations of hyperparameters
UNSEEN_KEYWORDS = {"device", "strict"}
SKIPPED = (ast.Raise, ast.Assert, ast.JoinedStr, ast.Import, ast.ImportFrom, ast.arguments)
SKIPPED_FIELDS = {"returns", "decorator_list", "annotation", "type_params"}
LONGEST = 200  # characters of a description


def partners(pairs: tuple[tuple[str, str], ...]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for one, other in pairs:
        found.setdefault(one, []).append(other)
        found.setdefault(other, []).append(one)
    return found


NAMES, CALLS = partners(EXCHANGED_NAMES), partners(EXCHANGED_CALLS)


@dataclass(frozen=True)
class Mutant:
    """One mistake, and what to set where to plant it: (object, attribute, value)."""

    function: str
    line: int
    what: str
    changes: tuple[tuple[Any, str, Any], ...]

    @contextmanager
    def planted(self) -> Iterator[None]:
        kept = [(holder, name, getattr(holder, name)) for holder, name, _ in self.changes]
        try:
            for holder, name, value in self.changes:
                setattr(holder, name, value)
            yield
        finally:
            for holder, name, value in kept:
                setattr(holder, name, value)


@dataclass(frozen=True)
class Edit:
    """One replacement in a tree: of a field, or of one element of a field that is a list."""

    parent: ast.AST
    field: str
    index: int | None
    new: Any
    what: str
    line: int

    @contextmanager
    def applied(self) -> Iterator[None]:
        value = getattr(self.parent, self.field)
        if self.index is None:
            new = self.new
        else:
            put = self.new if isinstance(self.new, list) else [self.new]
            new = value[: self.index] + put + value[self.index + 1 :]
        setattr(self.parent, self.field, new)
        try:
            yield
        finally:
            setattr(self.parent, self.field, value)


def mutants(module: ModuleType) -> Iterator[Mutant]:
    """All mutants of all functions and methods of a module, in the order of its text."""
    live = {function.__qualname__: function for function in functions_of(module)}
    tree = ast.parse(inspect.getsource(module))
    for node, owner in definitions(tree):
        name = f"{owner.name}.{node.name}" if owner else node.name
        function = live[name]
        seen = {ast.unparse(node)}
        described: Counter[str] = Counter()
        for edit in edits(node):
            with edit.applied():
                text = ast.unparse(ast.fix_missing_locations(node))
                if text in seen:
                    continue
                seen.add(text)
                code = compiled(node, owner, name, module)
            described[edit.what] += 1
            again = f" ({described[edit.what]})" if described[edit.what] > 1 else ""
            yield Mutant(name, edit.line, edit.what + again, ((function, "__code__", code),))
        if "torch.no_grad()" in map(ast.unparse, node.decorator_list):
            change = (module, node.name, getattr(module, node.name).__wrapped__)
            yield Mutant(name, node.lineno, "drop @torch.no_grad()", (change,))
    for name, function in live.items():
        yield from changed_defaults(name, function)


def definitions(tree: ast.Module) -> Iterator[tuple[ast.FunctionDef, ast.ClassDef | None]]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield node, None
        elif isinstance(node, ast.ClassDef):
            for member in node.body:
                if isinstance(member, ast.FunctionDef):
                    yield member, node


def compiled(
    node: ast.FunctionDef, owner: ast.ClassDef | None, name: str, module: ModuleType
) -> CodeType:
    """Code object of the function as its tree now stands, without its decorators."""
    decorators, node.decorator_list = node.decorator_list, []
    try:
        body: ast.stmt = node
        if owner is not None:
            body = ast.parse(f"class {owner.name}: pass").body[0]
            body.body = [node]  # type: ignore[attr-defined]
        future = ast.parse("from __future__ import annotations").body
        whole = ast.fix_missing_locations(ast.Module([*future, body], []))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of syntax that can only fail
            code = compile(whole, str(module.__file__), "exec")
    finally:
        node.decorator_list = decorators
    return next(part for part in code_objects(code) if part.co_qualname == name)


def changed_defaults(name: str, function: Any) -> Iterator[Mutant]:
    """Default values of parameters, of fields of dataclasses too."""
    positional = function.__defaults__ or ()
    for index, value in enumerate(positional):
        for new in changed_values(value):
            values = (*positional[:index], new, *positional[index + 1 :])
            parameters = function.__code__.co_varnames[: function.__code__.co_argcount]
            which = parameters[len(parameters) - len(positional) + index]
            what = f"default {which}={value} → {new}"
            yield Mutant(name, 0, what, ((function, "__defaults__", values),))
    for which, value in (function.__kwdefaults__ or {}).items():
        for new in changed_values(value):
            values = {**function.__kwdefaults__, which: new}
            what = f"default {which}={value} → {new}"
            yield Mutant(name, 0, what, ((function, "__kwdefaults__", values),))


def changed_values(value: Any) -> list[Any]:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value - 1]
    if isinstance(value, float):
        return [value * 2 if value else 1.0]
    if isinstance(value, str) and value:
        return [value + "_"]
    return []


# ------------------------------------------------------------------------------- edits of a tree


def edits(function: ast.FunctionDef) -> Iterator[Edit]:
    bound = {a.arg for a in ast.walk(function) if isinstance(a, ast.arg)}
    bound |= {
        n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
    }
    numbers = {
        a.arg
        for a in [*function.args.args, *function.args.kwonlyargs]
        if a.annotation is not None and ast.unparse(a.annotation) in NUMBERS
    }
    yield from _walk(function, _Scope(bound, numbers, _rebinding(function)))


@dataclass(frozen=True)
class _Scope:
    bound: set[str]  # names that are local to the function
    numbers: set[str]  # its hyperparameters
    rebinding: set[int]  # ids of assignments that can be left out without a NameError


def _rebinding(function: ast.FunctionDef) -> set[int]:
    known = {a.arg for a in ast.walk(function.args) if isinstance(a, ast.arg)}
    again: set[int] = set()
    for node in ast.walk(function):  # breadth first: outer assignments before inner ones
        if not isinstance(node, ast.Assign):
            continue
        names = {n.id for t in node.targets for n in ast.walk(t) if isinstance(n, ast.Name)}
        inside = all(isinstance(t, ast.Subscript | ast.Attribute) for t in node.targets)
        if inside or names <= known:
            again.add(id(node))
        known |= names
    return again


def _walk(node: ast.AST, scope: _Scope) -> Iterator[Edit]:
    for field, value in ast.iter_fields(node):
        refuses = isinstance(node, ast.If) and isinstance(node.body[-1], ast.Raise)
        if field in SKIPPED_FIELDS or (refuses and field == "body"):
            continue
        places = enumerate(value) if isinstance(value, list) else [(None, value)]
        for index, child in places:
            if isinstance(child, ast.AST) and not _skipped(child):
                for new, what in _replacements(child, scope):
                    line = getattr(child, "lineno", getattr(node, "lineno", 0))
                    yield Edit(node, field, index, new, what, line)
                yield from _walk(child, scope)


def _skipped(node: ast.AST) -> bool:
    text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    unseen = isinstance(node, ast.keyword) and node.arg in UNSEEN_KEYWORDS
    return isinstance(node, SKIPPED) or text or unseen


def _replacements(node: ast.AST, scope: _Scope) -> Iterator[tuple[Any, str]]:
    if isinstance(node, ast.Slice):  # an expression to ast, but one without a value
        yield from _slices(node)
    elif isinstance(node, ast.expr):
        for new in _expressions(node, scope):
            yield new, f"{_short(node)} → {_short(new)}"
        if isinstance(node, ast.Call):
            yield from _without_keywords(node)
    elif isinstance(node, ast.comprehension):
        yield from _comprehensions(node)
    elif isinstance(node, ast.stmt):
        yield from _statements(node, scope)


def _short(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _number(value: float) -> ast.Constant:
    return ast.Constant(value)


def _plus(node: ast.expr, amount: int) -> ast.expr:
    operator = ast.Add() if amount > 0 else ast.Sub()
    return ast.BinOp(node, operator, _number(abs(amount)))


def _expressions(node: ast.expr, scope: _Scope) -> Iterator[ast.expr]:
    if isinstance(node, ast.Name | ast.Attribute):
        yield from _other_names(node, scope)
    elif type(node) in REWRITES:
        yield from REWRITES[type(node)](node)


def _binary(node: ast.BinOp) -> Iterator[ast.expr]:
    if type(node.op) in OPERATORS:
        yield ast.BinOp(node.left, OPERATORS[type(node.op)](), node.right)
    yield from (node.left, node.right)


def _unary(node: ast.UnaryOp) -> Iterator[ast.expr]:
    yield node.operand


def _compare(node: ast.Compare) -> Iterator[ast.expr]:
    for other in COMPARISONS[type(node.ops[0])]:
        yield ast.Compare(node.left, [other(), *node.ops[1:]], node.comparators)


def _boolean(node: ast.BoolOp) -> Iterator[ast.expr]:
    yield ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
    for index in range(len(node.values)):
        rest = node.values[:index] + node.values[index + 1 :]
        yield rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest)


def _either(node: ast.IfExp) -> Iterator[ast.expr]:
    yield from (node.body, node.orelse)


def _constant(node: ast.Constant) -> Iterator[ast.expr]:
    yield from map(_number, changed_values(node.value))


def _subscript(node: ast.Subscript) -> Iterator[ast.expr]:
    if not isinstance(node.slice, ast.Slice | ast.Tuple | ast.Constant | ast.UnaryOp):
        for amount in (1, -1):
            yield ast.Subscript(node.value, _plus(node.slice, amount), node.ctx)


def _tuple(node: ast.Tuple) -> Iterator[ast.expr]:
    yield from (ast.Tuple(swapped, node.ctx) for swapped in _swaps(node.elts))


def _other_names(node: ast.Name | ast.Attribute, scope: _Scope) -> Iterator[ast.expr]:
    if not isinstance(node.ctx, ast.Load):
        return
    if isinstance(node, ast.Attribute):
        yield from (ast.Attribute(node.value, n, node.ctx) for n in NAMES.get(node.attr, ()))
        return
    yield from (ast.Name(n, node.ctx) for n in NAMES.get(node.id, ()) if n in scope.bound)
    if node.id in scope.numbers:
        yield _number(1)
    if node.id.isupper() and len(node.id) > 2:  # a constant of the module
        yield ast.BinOp(node, ast.Mult(), _number(2))


def _swaps(nodes: list[ast.expr]) -> Iterator[list[ast.expr]]:
    for i in range(len(nodes) - 1):
        if not any(isinstance(n, ast.Starred) for n in nodes[i : i + 2]):
            yield [*nodes[:i], nodes[i + 1], nodes[i], *nodes[i + 2 :]]


def _calls(node: ast.Call) -> Iterator[ast.expr]:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
    for other in CALLS.get(name, ()):
        if isinstance(node.func, ast.Attribute):
            function: ast.expr = ast.Attribute(node.func.value, other, ast.Load())
        else:
            function = ast.Name(other, ast.Load())
        yield ast.Call(function, node.args, node.keywords)
    if name not in SYMMETRIC:
        for swapped in _swaps(node.args):
            yield ast.Call(node.func, swapped, node.keywords)
    if name in ("range", "arange"):
        for index, bound in enumerate(node.args):
            for amount in (1, -1):
                moved = [*node.args[:index], _plus(bound, amount), *node.args[index + 1 :]]
                yield ast.Call(node.func, moved, node.keywords)
    if isinstance(node.func, ast.Attribute) and not _is_module(node.func.value):
        yield node.func.value
    elif node.args and not isinstance(node.args[0], ast.Starred) and not name[:1].isupper():
        yield from node.args[: 2 if name in SYMMETRIC else 1]


REWRITES: dict[type[ast.AST], Callable[[Any], Iterator[ast.expr]]] = {
    ast.BinOp: _binary,
    ast.UnaryOp: _unary,
    ast.Compare: _compare,
    ast.BoolOp: _boolean,
    ast.IfExp: _either,
    ast.Constant: _constant,
    ast.Subscript: _subscript,
    ast.Tuple: _tuple,
    ast.Call: _calls,
}


def _is_module(node: ast.expr) -> bool:
    while isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, ast.Name) and node.id in {"torch", "np", "math", "F", "nn"}


def _without_keywords(node: ast.Call) -> Iterator[tuple[ast.expr, str]]:
    if ast.unparse(node.func).rpartition(".")[2][:1].isupper():
        return  # a field of a dataclass: nothing to leave out
    for index, keyword in enumerate(node.keywords):
        if keyword.arg is not None and keyword.arg not in UNSEEN_KEYWORDS:
            rest = node.keywords[:index] + node.keywords[index + 1 :]
            call = ast.Call(node.func, node.args, rest)
            yield call, f"{_short(node.func)}(…) without {_short(keyword)}"


def _comprehensions(node: ast.comprehension) -> Iterator[tuple[ast.comprehension, str]]:
    for test in node.ifs:
        yield ast.comprehension(node.target, node.iter, [], 0), f"drop if {_short(test)}"
        turned = ast.UnaryOp(ast.Not(), test)
        yield ast.comprehension(node.target, node.iter, [turned], 0), f"not if {_short(test)}"
    for new, what in _shortened(node.iter):
        yield ast.comprehension(node.target, new, node.ifs, 0), what


def _shortened(iterable: ast.expr) -> Iterator[tuple[ast.expr, str]]:
    for bounds in ("1:", ":-1"):
        text = f"list({ast.unparse(iterable)})[{bounds}]"
        yield ast.parse(text, mode="eval").body, f"in {_short(iterable)} → [{bounds}] of it"


def _slices(node: ast.Slice) -> Iterator[tuple[ast.Slice, str]]:
    def moved(lower: Any, upper: Any, step: Any) -> tuple[ast.Slice, str]:
        new = ast.Slice(lower, upper, step)
        return new, f"[{_short(node)}] → [{_short(new)}]"

    lower, upper, step = node.lower, node.upper, node.step
    for amount in (1, -1):
        if lower is not None and not isinstance(lower, ast.Constant):
            yield moved(_plus(lower, amount), upper, step)
        if upper is not None and not isinstance(upper, ast.Constant):
            yield moved(lower, _plus(upper, amount), step)
    if lower is not None:
        yield moved(None, upper, step)
    elif upper is not None:
        yield moved(_number(1), upper, step)
    if upper is not None:
        yield moved(lower, None, step)
    elif lower is not None:
        yield moved(lower, _number(-1), step)
    if step is not None:
        yield moved(lower, upper, None)


def _statements(node: ast.stmt, scope: _Scope) -> Iterator[tuple[Any, str]]:
    if isinstance(node, ast.If | ast.While):
        test = _short(node.test)
        for value in (True, False) if isinstance(node, ast.If) else (False,):
            new = type(node)(_number(value), node.body, node.orelse)
            yield new, f"{'always' if value else 'never'} {test}"
        if not isinstance(node.test, ast.Compare):  # which turns round by itself
            turned = ast.UnaryOp(ast.Not(), node.test)
            yield type(node)(turned, node.body, node.orelse), f"unless {test}"
    elif isinstance(node, ast.For):
        for new, what in _shortened(node.iter):
            yield ast.For(node.target, new, node.body, node.orelse), what
    elif isinstance(node, ast.With):
        yield node.body, f"drop with {', '.join(_short(item) for item in node.items)}"
    elif isinstance(node, ast.AugAssign):
        operator = OPERATORS[type(node.op)]()
        yield ast.AugAssign(node.target, operator, node.value), f"other sign in {_short(node)}"
        yield ast.Assign([node.target], node.value), f"only = in {_short(node)}"
        yield ast.Pass(), f"drop {_short(node)}"
    elif isinstance(node, ast.Expr | ast.Continue | ast.Break) or (
        isinstance(node, ast.Assign) and id(node) in scope.rebinding
    ):
        yield ast.Pass(), f"drop {_short(node)}"
