"""The table of objectives in the room's README says what the code and the yamls say."""

from __future__ import annotations

import functools
import importlib
import re
from pathlib import Path

import pytest
import torch
import yaml

from alignlab.objectives.declaration import declaration
from alignlab.tensors import GroupLogps, PairLogps, SingleLogps

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf" / "objective"
README = (ROOT / "alignlab" / "objectives" / "README.md").read_text(encoding="utf-8")
VIEWS = {"Pairs": "pair", "Thumbs": "single", "Prompts with K answers": "group"}


def rows() -> dict[str, tuple[str, list[str]]]:
    """Name of the yaml: title of its section, and the cells behind it."""
    found: dict[str, tuple[str, list[str]]] = {}
    title = ""
    for line in README.splitlines():
        if line.startswith("## "):
            title = line.removeprefix("## ")
        elif match := re.match(r"\| `(\w+)` \| (.*) \|$", line):
            assert match[1] not in found
            found[match[1]] = (title, [cell.strip() for cell in match[2].split("|")])
    return found


ROWS = rows()


def test_every_yaml_has_a_row_and_every_row_a_yaml():
    assert sorted(ROWS) == sorted(path.stem for path in CONF.glob("*.yaml"))


def defaults(values: dict) -> str:
    numbers = (f"{v:g}" if isinstance(v, float) else v for v in values.values())
    return ", ".join(f"{name} {value}" for name, value in zip(values, numbers, strict=True))


def read(name: str):
    values = yaml.safe_load((CONF / f"{name}.yaml").read_text(encoding="utf-8"))
    module, _, function = values.pop("_target_").rpartition(".")
    return getattr(importlib.import_module(module), function), values


def uses(function, *, lengths: int, scale: float) -> torch.Tensor:
    """Its losses of two answers in the wrong order, log-probs and lengths times a factor."""
    logps, length = torch.tensor([-5.0, -3.0]).double() * scale, torch.tensor([3, 4]) * lengths
    one, index = torch.tensor([0]), torch.tensor([0, 0])
    view = declaration(function).view
    policy: PairLogps | SingleLogps | GroupLogps
    if view == "pair":
        policy = PairLogps(logps[:1], logps[1:], length[:1], length[1:])
    elif view == "single":
        policy = SingleLogps(logps, length, torch.tensor([True, False]))
    else:
        utility = torch.tensor([1.0, 0.0]).double()
        policy = GroupLogps(logps, length, utility, index, one, one + 1, one, 1)
    needs = declaration(function)
    given = {"kl_point": needs.needs_kl_point, "log_ratio_shift": needs.needs_shift}
    zero = {"chosen", "rejected", "completion"}
    before = type(policy)(
        **{k: torch.zeros_like(v) if k in zero else v for k, v in vars(policy).items()}
    )
    arguments = [policy, before] if needs.needs_reference else [policy]
    return function(*arguments, **{k: torch.tensor(0.1) for k, asked in given.items() if asked})


@pytest.mark.parametrize("name", sorted(ROWS))
def test_a_row_says_what_the_code_does(name: str):
    title, (method, reference, logps, said, when, source) = ROWS[name]
    function, values = read(name)
    assert declaration(function).view == VIEWS[title]
    assert reference == ("yes" if declaration(function).needs_reference else "no")
    assert said == defaults(values)
    assert all((method, when, source))
    # twice the tokens at the same sums: nothing changes for sums; twice of both: nothing for means
    bound = functools.partial(function, **values)
    plain = uses(bound, lengths=1, scale=1.0)
    reads_lengths = not torch.equal(plain, uses(bound, lengths=2, scale=1.0))
    reads_sums = not torch.equal(plain, uses(bound, lengths=2, scale=2.0))
    kinds = {(False, True): "sums", (True, False): "means", (True, True): "both"}
    assert logps == kinds[reads_lengths, reads_sums]
