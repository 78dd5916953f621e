"""Every experiment that a README names is there, and every README says what was asked and how."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
READMES = sorted((ROOT / "experiments").glob("[0-9]*/README.md"))


@pytest.mark.parametrize("readme", READMES, ids=lambda p: p.parent.name)
def test_what_a_readme_names_exists(readme: Path) -> None:
    text = readme.read_text(encoding="utf-8")
    for name in re.findall(r"experiment=([a-z0-9_]+)", text):
        assert (ROOT / "conf" / "experiment" / f"{name}.yaml").is_file(), name
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (readme.parent / link).exists(), link
    for script in re.findall(r"python (experiments/\S+\.py)", text):
        assert (ROOT / script).is_file(), script


@pytest.mark.parametrize("readme", READMES, ids=lambda p: p.parent.name)
def test_a_readme_has_question_dated_prediction_and_command(readme: Path) -> None:
    text = readme.read_text(encoding="utf-8")
    assert re.search(r"\*\*Questions?\b", text)
    assert re.search(r"\*\*Prediction\*\* \(\d+ \w+ \d{4}", text)
    assert "**Command.**" in text
    assert re.search(r"^## Result|Not run yet", text, re.M)
