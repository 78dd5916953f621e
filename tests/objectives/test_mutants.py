"""The worked examples must notice a wrong formula: break each objective once, in every place.

A mutant is a copy of the module's source with one change: a sign flipped, a hyperparameter dropped
(replaced by 1), chosen and rejected exchanged, policy and reference exchanged, a comparison turned
round, multiplication and division exchanged. A mutant that passes every example has survived.
"""

from __future__ import annotations

import ast
import copy
import inspect
import types
import warnings
from collections.abc import Iterator

import pytest
from objective_cases import CASES
from test_by_hand import MODULES, load

OPERATORS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}
COMPARISONS = {ast.Lt: ast.Gt, ast.Gt: ast.Lt, ast.LtE: ast.Gt, ast.GtE: ast.Lt}
SWAPS = {"better": "worse", "chosen": "rejected", "chosen_length": "rejected_length"}
SWAPS |= {b: a for a, b in SWAPS.items()}
NAMES = {"policy": "reference", "reference": "policy", "new": "reference"}

EQUIVALENT = {
    # the largest term of a log-sum-exp: any subtracted constant gives the same value
    ("ranking", "_choice_losses", "swap .better"): "which index the maximum is taken over",
}


def sites(function: ast.FunctionDef) -> Iterator[tuple[ast.AST, str]]:
    """Every node of a function that has a mutation, without messages of exceptions."""
    arguments = {a.arg for a in [*function.args.args, *function.args.kwonlyargs]}
    numbers = {
        a.arg
        for a in function.args.kwonlyargs
        if ast.unparse(a.annotation) in {"float", "Positive", "NonNegative", "FlipRate"}
    }
    stack: list[ast.AST] = list(function.body)
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Raise):
            continue
        stack.extend(ast.iter_child_nodes(node))
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            yield node, f"operator in {ast.unparse(node)}"
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            yield node, f"sign in {ast.unparse(node)}"
        elif isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
            yield node, f"comparison in {ast.unparse(node)}"
        elif isinstance(node, ast.Attribute) and node.attr in SWAPS:
            yield node, f"swap .{node.attr}"
        elif isinstance(node, ast.Name) and node.id in numbers:
            yield node, f"drop {node.id}"
        elif isinstance(node, ast.Name) and NAMES.get(node.id) in arguments:
            yield node, f"swap {node.id}"


def mutate(node: ast.AST) -> None:
    """Apply the node's mutation in place."""
    if isinstance(node, ast.BinOp):
        node.op = OPERATORS[type(node.op)]()
    elif isinstance(node, ast.UnaryOp):
        node.op = ast.UAdd()
    elif isinstance(node, ast.Compare):
        node.ops[0] = COMPARISONS[type(node.ops[0])]()
    elif isinstance(node, ast.Attribute):
        node.attr = SWAPS[node.attr]
    elif isinstance(node, ast.Name):
        node.id = NAMES.get(node.id, "_ONE")


def mutants(name: str) -> Iterator[tuple[str, str, types.ModuleType]]:
    """(function, what changed, module) for every mutant of a module."""
    tree = ast.parse(inspect.getsource(load(name)))
    functions = [n for n in tree.body if isinstance(n, ast.FunctionDef)]
    covered = {case.function for case in CASES if case.module == name}
    for position, function in enumerate(functions):
        if function.name not in covered and not function.name.startswith("_"):
            continue
        for number, (_, what) in enumerate(sites(function)):
            broken = copy.deepcopy(tree)
            target = [n for n in broken.body if isinstance(n, ast.FunctionDef)][position]
            mutate(list(sites(target))[number][0])
            module = types.ModuleType(f"mutant_{name}")
            module.__dict__["_ONE"] = 1.0
            exec(compile(broken, f"<{name}: {what}>", "exec"), module.__dict__)
            yield function.name, what, module


def survives(name: str, module: types.ModuleType) -> bool:
    for case in CASES:
        if case.module != name:
            continue
        try:
            case.run(module)
        except Exception:  # a mutant may fail in any way
            return False
    return True


@pytest.mark.parametrize("name", MODULES)
def test_no_mutant_survives_the_worked_examples(name: str):
    survivors, tried = [], 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for function, what, module in mutants(name):
            tried += 1
            if (name, function, what) not in EQUIVALENT and survives(name, module):
                survivors.append(f"{function}: {what}")
    assert tried > 0
    assert not survivors, "\n".join(survivors)


def test_an_unchanged_copy_survives():
    for name in MODULES:
        module = types.ModuleType(f"copy_{name}")
        exec(compile(inspect.getsource(load(name)), name, "exec"), module.__dict__)
        assert survives(name, module)
