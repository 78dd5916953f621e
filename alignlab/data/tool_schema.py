"""Whether a call is one that the tools of its prompt allow: a declared name, fitting arguments."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from alignlab.data.call_text import Call
from alignlab.errors import DataError

# Many sets write Python's names of types (ToolACE, xLAM), and "optional" behind them.
_TYPES = {
    "null": "null",
    **dict.fromkeys(("str", "string"), "string"),
    **dict.fromkeys(("int", "integer", "long"), "integer"),
    **dict.fromkeys(("float", "number", "double"), "number"),
    **dict.fromkeys(("bool", "boolean"), "boolean"),
    **dict.fromkeys(("list", "array", "tuple", "set", "sequence"), "array"),
    **dict.fromkeys(("dict", "object", "mapping"), "object"),
}


def declared(tools: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return the functions that ``tools`` declare, by name."""
    functions = [tool.get("function", tool) for tool in tools]
    return {str(function["name"]): function for function in functions}


def fits(call: Call, function: Mapping[str, Any]) -> bool:
    """Whether the arguments of a call are those that a function declares.

    ``parameters`` is a JSON Schema, or a mapping of names to types and defaults (xLAM). Names that
    it does not have are refused, unless a JSON Schema says ``additionalProperties``.

    Raises:
        DataError: ``parameters`` is neither.
    """
    validator = _validator(json.dumps(function, sort_keys=True, default=str))
    return bool(validator.is_valid(dict(call.arguments)))


@lru_cache(maxsize=4096)
def _validator(function: str) -> Any:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    stated = json.loads(function)
    parameters = stated.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise DataError(
            f"The tool '{stated.get('name')}' has parameters that are no object but "
            f"{parameters!r:.60}. Correct the tools in the data."
        )
    schema = _schema(parameters)
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise DataError(
            f"The tool '{stated.get('name')}' has parameters that are no JSON Schema: "
            f"{error.message:.120}. Correct the tools in the data."
        ) from error
    return Draft202012Validator(schema)


def _schema(parameters: Mapping[str, Any]) -> dict[str, Any]:
    if "properties" in parameters or ("type" in parameters and not _is_field(parameters["type"])):
        stated = {"additionalProperties": False, "properties": {}, **parameters, "type": "object"}
        return {key: _named(key, value) for key, value in stated.items()}
    fields = {name: one for name, one in parameters.items() if _is_field(one)}
    return {
        "type": "object",
        "properties": {name: _type(str(one.get("type", ""))) for name, one in fields.items()},
        "required": [name for name, one in fields.items() if _required(one)],
        "additionalProperties": False,
    }


def _named(key: str, value: Any) -> Any:
    """A part of a schema with the names of types that JSON Schema knows; values stay."""
    if key in ("enum", "const", "default", "examples", "required"):
        return value
    if isinstance(value, Mapping):
        inner = {name: _named(name, one) for name, one in value.items()}
        word = inner.get("type")
        if isinstance(word, str):
            inner = {**{k: v for k, v in inner.items() if k != "type"}, **_type(word)}
        return inner
    return [_named("", one) for one in value] if isinstance(value, list) else value


def _is_field(value: Any) -> bool:
    return isinstance(value, Mapping)


def _required(field: Mapping[str, Any]) -> bool:
    return "default" not in field and "optional" not in str(field.get("type", "")).lower()


def _type(word: str) -> dict[str, Any]:
    """What a type's name asks for; one that is not known asks for nothing."""
    name = re.match(r"\w*", word.strip().lower())
    known = _TYPES.get(name[0] if name else "")
    return {"type": known} if known else {}
