from __future__ import annotations

import pytest

from alignlab.data.group import CHOSEN_REJECTED, DEMONSTRATION, PromptGroup
from alignlab.data.quality.instruct import Instruct, Template
from alignlab.errors import DataError


def template(prompt="{prompt}", completion="{completion}", share=1.0):
    return Template(prompt=prompt, completion=completion, share=share)


def sentiment(count=200):
    return [
        PromptGroup(
            f"film {i}", ("good",), DEMONSTRATION, str(i), {"task": "sst", "year": 1990 + i}
        )
        for i in range(count)
    ]


def step(*templates, field="task", task="sst", seed=0):
    return Instruct(field=field, templates={task: templates}, seed=seed)


def test_named_fields_are_filled():
    [row] = sentiment(1)
    [out] = step(template("Is {prompt} ({year}) any {{good}}?", " {completion}!")).apply([row])[0]
    assert out.prompt == "Is film 0 (1990) any {good}?"
    assert out.completions == (" good!",)
    assert out.verdict == DEMONSTRATION
    assert out.meta["template"] == "sst 1"


def test_a_template_may_turn_the_task_round():
    [out] = step(template("Name a {completion} film.", "{prompt}")).apply(sentiment(1))[0]
    assert (out.prompt, out.completions) == ("Name a good film.", ("film 0",))


def test_templates_are_drawn_by_share_and_stay_with_their_row():
    both = step(template("A {prompt}", share=3.0), template("B {prompt}"))
    rows = sentiment()
    out, effect = both.apply(rows)
    assert effect.why["template 1 of sst"] + effect.why["template 2 of sst"] == 200
    assert abs(effect.why["template 1 of sst"] - 150) < 3 * (200 * 0.25 * 0.75) ** 0.5
    assert both.apply(rows[::-1])[0] == out[::-1]
    assert both.apply(rows[50:60])[0] == out[50:60]
    other = step(template("A {prompt}", share=3.0), template("B {prompt}"), seed=1)
    assert other.apply(rows)[0] != out


def test_pairs_and_messages_are_rewritten():
    pair = PromptGroup("q", ("a", "b"), CHOSEN_REJECTED, "1", {"task": "sst"})
    [out] = step(template("Ask: {prompt}", "> {completion}")).apply([pair])[0]
    assert (out.prompt, out.completions) == ("Ask: q", ("> a", "> b"))
    chat = PromptGroup(
        ({"role": "system", "content": "s"}, {"role": "user", "content": "q"}),
        (({"role": "assistant", "content": "a"},),),
        DEMONSTRATION,
        "2",
    )
    [out] = step(template("Ask: {prompt}"), field=None, task="any").apply([chat])[0]
    assert [m["content"] for m in out.prompt] == ["s", "Ask: q"]
    assert out.completions == chat.completions
    # Which of two completions would "{completion}" in a prompt be?
    with pytest.raises(DataError, match="wants 'completion'"):
        step(template("{completion}")).apply([pair])


def test_rows_of_other_tasks_stay_and_are_counted():
    other = PromptGroup("x", ("y",), DEMONSTRATION, "o", {"task": "nli"})
    out, effect = step(template("A {prompt}")).apply([*sentiment(2), other])
    assert out[2] == other
    assert effect.why == {"template 1 of sst": 2, "task nli has no template": 1}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: template("{prompt"), "Write a brace"),
        (lambda: template("{prompt.upper}"), "only {field} is known"),
        (lambda: template("{0}"), "only {field}"),
        (lambda: template("{prompt!r}"), "only {field}"),
        (lambda: step(), "templates.sst has no template"),
        (lambda: step(template(), field=None), "one entry, 'any'"),
        (lambda: step(template("{yeer}")).apply(sentiment(1)), "Did you mean 'year'"),
        (lambda: step(template(), task="sts").apply(sentiment(1)), "Did you mean 'sst'"),
    ],
)
def test_what_cannot_be_filled_is_refused(make, message):
    with pytest.raises(DataError, match=message):
        make()
