"""The shape of the house: floors, file and function length, the README's tree, light imports."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "alignlab").rglob("*.py"))
LONGEST_FILE = 300
LONGEST_FUNCTION = 60


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_stay_readable(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST_FILE
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= LONGEST_FUNCTION, f"{node.name} has {length} lines"


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_exception_is_swallowed(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ExceptHandler):
            silent = len(node.body) == 1 and isinstance(node.body[0], ast.Pass)
            assert not silent, f"line {node.lineno}"


@pytest.mark.slow
def test_imports_go_down_only() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "module",
    ["alignlab.cli", "alignlab.plan", "alignlab.compose", "alignlab.run"]
    + [
        f"alignlab.stages.{p.stem}"
        for p in (ROOT / "alignlab/stages").glob("*.py")
        if p.stem
        in {
            "stage",
            "pretrain",
            "continued_pretrain",
            "sft",
            "annotate",
            "reward",
            "preference",
            "ppo",
            "grpo",
            "evaluate",
            "benchmark",
            "reward_benchmark",
            "judge",
        }
    ],
)
def test_the_door_imports_nothing_heavy(module: str) -> None:
    heavy = (
        "{'torch', 'transformers', 'trl', 'peft', 'datasets', 'wandb', 'deepspeed', 'accelerate'}"
    )
    code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_readme_tree_is_the_real_tree() -> None:
    text = (ROOT / "alignlab" / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z_/]+\.py)`", text))
    real = {str(p.relative_to(ROOT / "alignlab")) for p in FILES if p.name != "__init__.py"}
    assert named - real == set(), "named in alignlab/README.md but not there"
    assert real - named == set(), "there but not named in alignlab/README.md"
