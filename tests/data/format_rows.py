"""Messages and helpers of the tests of the formats."""

from __future__ import annotations

from alignlab.data.formats.registry import detect, read

U = {"role": "user", "content": "q"}
U2 = {"role": "user", "content": "q2"}
A = {"role": "assistant", "content": "a"}
B = {"role": "assistant", "content": "b"}
S = {"role": "system", "content": "s"}


def group(row, **options):
    return read(detect([row]), row, **options)


def said(role, content, **more):
    return {"role": role, "content": content, **more}


def share(*pairs):
    return [{"from": role, "value": value} for role, value in pairs]
