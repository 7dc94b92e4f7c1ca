"""`agent.structured_output=prompt`: what a grammar would force is asked for in words, and looked at when the reply arrives.

A grammar masks the tokens that it does not allow, so that the model is never wrong and learns nothing of the form; the actor,
which has no grammar, computes other log-probabilities. In words the model is free: a schema stands in the prompt, a reply
that does not fit is noted with the call, and an agent that fails on it has earned 0 (`store.py`) instead of failing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

REFUSE, PROMPT = "refuse", "prompt"


@dataclass(frozen=True)
class Wanted:
    """The form that a reply was asked for. schema: of its JSON; function: the one to call, "" for any, None for no call."""

    schema: Mapping[str, Any] | None = None
    function: str | None = None

    @property
    def words(self) -> str:
        if self.function is not None:
            return f"Call the function {self.function}." if self.function else "Call one of the functions."
        shown = (
            ""
            if self.schema == {"type": "object"}
            else f" It must fit this schema: {orjson.dumps(self.schema).decode()}"
        )
        return f"Answer with one JSON object and nothing else.{shown}"


def in_words(body: dict[str, Any]) -> Wanted | None:
    """Ask in words for what a request asks a grammar for, in place; None if it asks for nothing of the kind.

    Raises `ValueError` for a schema that is none, or that refers to another.
    """
    choice, form = body.get("tool_choice"), body.get("response_format", {"type": "text"})
    if choice not in (None, "auto", "none"):
        wanted = Wanted(function="" if choice == "required" else choice["function"]["name"])
        body["tool_choice"] = "auto"
        body.pop("response_format", None)  # vLLM, too, lets the call go before it
    elif form["type"] != "text":
        wanted = Wanted(schema=form["json_schema"]["schema"] if form["type"] == "json_schema" else {"type": "object"})
        _errors({}, wanted.schema)
        del body["response_format"]
    else:
        return None
    first, *rest = body["messages"]
    if first["role"] in ("system", "developer") and isinstance(first.get("content"), str):
        body["messages"] = [{**first, "content": f"{first['content']}\n\n{wanted.words}"}, *rest]
    else:
        body["messages"] = [{"role": "system", "content": wanted.words}, first, *rest]
    return wanted


def flaw(message: Mapping[str, Any], wanted: Wanted | None) -> str:
    """Why a reply has not the form that it was asked for; "" if it has, or if none was asked for."""
    called = [call["function"]["name"] for call in message.get("tool_calls") or []]
    if wanted is None or (wanted.function is None and called):  # a call comes before the answer
        return ""
    if wanted.function is not None:
        missing = not called or (wanted.function and wanted.function not in called)
        return f"the reply does not call {wanted.function or 'a function'}" if missing else ""
    try:
        value = orjson.loads(message.get("content") or "")
    except orjson.JSONDecodeError as error:
        return f"the reply is not JSON: {error}"
    wrong = _errors(value, wanted.schema)
    return f"the reply does not fit its schema: {wrong}"[:200] if wrong else ""


def _errors(value: Any, schema: Any) -> str:
    """The first thing in which a value does not fit a schema. Patterns are shown to the model and not tried: a caller's regular
    expression can take for ever. Nothing is fetched for a schema that refers to an address."""
    from jsonschema import Draft202012Validator, exceptions, validators  # the proxy starts without it
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    untried = {name: lambda *_: () for name in ("pattern", "patternProperties")}
    checker = validators.extend(Draft202012Validator, untried)
    try:
        checker.check_schema(schema)
        error = next(checker(schema, registry=Registry()).iter_errors(value), None)
    except (exceptions.SchemaError, Unresolvable, RecursionError) as reason:
        raise ValueError(f"response_format has no usable JSON schema: {str(reason).splitlines()[0][:200]}") from reason
    return "" if error is None else error.message
