"""The gate on what the texts say: pairs, roles, characters, and what two splits share."""

from __future__ import annotations

import pytest
from gate_cases import by_code, findings, pair, shown, talk
from mutation import catches

from alignlab.data.gate import characters
from alignlab.data.gate.character_checks import _misread
from alignlab.data.gate.limits import Limits, Share
from alignlab.data.gate.repetition_checks import WINDOW, bare, plain, rolling, skeleton
from alignlab.data.gate.role_checks import problems
from alignlab.data.group import CHOSEN_REJECTED, PromptGroup

CLEAN = [shown(f"the film {i}\n", f" was good {i}") for i in range(99)]


# -- the prompts of a pair -------------------------------------------------------------------------


def test_one_side_repeats_the_prompt(plain_tokenizer):
    prompt = "the film was very good\n"
    mixed = pair(prompt, prompt + "yes", " no")
    assert by_code(findings([*CLEAN, mixed], plain_tokenizer))["prompt_mismatch"] == (
        "warning",  # one of a hundred
        (99,),
    )
    assert by_code(findings([*CLEAN[:9], mixed], plain_tokenizer))["prompt_mismatch"][0] == "error"
    both = pair(prompt, prompt + "yes", prompt + "no")
    assert by_code(findings([both], plain_tokenizer)) == {"prompt_in_completion": ("warning", (0,))}


def test_dialogues_of_a_pair_that_differ_before_the_answer(chatml_tokenizer):
    prompt = talk("user", "the film")
    same = PromptGroup(
        prompt,
        (
            talk("assistant", "good", "user", "acting", "assistant", "bad"),
            talk("assistant", "good", "user", "acting", "assistant", "a movie"),
        ),
        CHOSEN_REJECTED,
    )
    other = PromptGroup(
        prompt,
        (
            talk("assistant", "good", "user", "acting", "assistant", "bad"),
            talk("assistant", "good", "user", "movie", "assistant", "a movie"),
        ),
        CHOSEN_REJECTED,
    )
    found = by_code(findings([same, other], chatml_tokenizer))
    assert found["prompt_mismatch"] == ("error", (1,))


# -- roles -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "completion", "shows"),
    [
        ("system user", "assistant", set()),
        ("user assistant user", "assistant", set()),
        ("user", "assistant user assistant", set()),
        ("developer user", "assistant", set()),
        ("user", "assistant+call tool assistant", set()),
        ("user assistant+call tool tool", "assistant", set()),
        ("user", "", set()),
        ("user user", "assistant", {"two_users"}),
        ("user", "assistant assistant", {"two_assistants"}),
        ("user assistant", "assistant", {"two_assistants"}),
        ("assistant user", "assistant", {"assistant_first"}),
        ("system assistant", "assistant", {"assistant_first", "two_assistants"}),
        ("user system user", "assistant", {"system_inside"}),
        ("system system user", "assistant", set()),
        ("user", "user assistant", {"completion_role", "two_users"}),
        ("user assistant tool", "assistant", {"tool_without_call"}),
        ("usr", "assistant", {"unknown_role"}),
    ],
)
def test_roles(prompt, completion, shows):
    assert problems(tuple(prompt.split()), tuple(completion.split())) == shows


def test_roles_of_rows(chatml_tokenizer):
    rows = [
        shown(talk("user", "film"), talk("assistant", "good")),
        shown(talk("user", "film", "user", "bad"), talk("assistant", "good")),
        shown(talk("user", "movie"), "good"),  # a text beside messages is the assistant's
    ]
    assert by_code(findings(rows, chatml_tokenizer)) == {"two_users": ("warning", (1,))}


# -- characters ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("a \x00 b", "control_character"),
        ("a \x1b[0m b", "control_character"),
        ("a \x85 b", "control_character"),
        ("a \ufffd b", "replacement_character"),
        ("a \uf0b7 b", "replacement_character"),
        ("a \u202e b", "invisible_character"),
        ("a \U000e0041 b", "invisible_character"),
        ("itâ€™s", "mojibake"),
        ("cafÃ© au lait", "mojibake"),
        ("price: Â£5", "mojibake"),
        ("ðŸ˜€", "mojibake"),
    ],
)
def test_damaged_text(plain_tokenizer, text, code):
    found = by_code(findings([*CLEAN, shown("odd\n", " " + text)], plain_tokenizer))
    assert found == {code: ("warning", (99,))}
    found = by_code(findings([*CLEAN, shown(text + "\n", " good")], plain_tokenizer))
    assert found[code] == ("warning", (99,))


@pytest.mark.parametrize(
    "text",
    [
        "tab\tand\r\nline",
        "it’s “fine” – really…",
        "café, Âge, São Paulo, naïve",
        "नमस्ते क्‍ष",  # with a zero-width joiner, which the script needs
        "👩‍👩‍👧 🇩🇪",
        "😀",
    ],
)
def test_text_in_order(plain_tokenizer, text):
    codes = {f.code for f in findings([shown("odd\n", " " + text)] * 2, plain_tokenizer)}
    assert codes == {"repeated_row"}


def test_half_characters_are_an_error(plain_tokenizer):
    """No tokenizer takes them, so the tokens are those of another text."""
    from alignlab.data.gate.gate import Gate
    from alignlab.data.template import Tokenization

    row = shown("odd\n", " \ud83d half")
    gate = Gate(plain_tokenizer, held_out={"test": [row.keep([])]})
    gate.see([row], [Tokenization(plain_tokenizer, 64, 64).group(shown("odd\n", " x"), 0)])
    assert by_code(gate.findings())["invalid_unicode"] == ("error", (0,))


@pytest.mark.slow
@catches("alignlab.data.gate.character_checks", "(asked != said)", "(asked == said)")
@catches("alignlab.data.gate.character_checks", "name != common and", "name == common and")
def test_scripts_that_stand_out(plain_tokenizer):
    rows = [*CLEAN, shown("Что это за фильм?\n", " Очень хороший фильм, правда")]
    assert by_code(findings(rows, plain_tokenizer)) == {"other_script": ("warning", (99,))}
    answer = shown("what was this film about\n", " Очень хороший фильм, правда")
    found = by_code(findings([*CLEAN, answer], plain_tokenizer))
    assert found.get("answer_in_other_script") == ("warning", (99,))
    # half and half is a data set in two languages
    many = [shown(f"{i} фильм\n", " хороший") for i in range(99)]
    assert findings([*CLEAN, *many], plain_tokenizer) == []
    limits = Limits(script_outlier=None)
    assert findings(rows, plain_tokenizer, limits=limits) == []


def test_every_character_has_one_class():
    counts = characters.counts_of(["abc, 12!", "", "aя\x00語", "\ufffd"])
    latin = characters.FIRST_SCRIPT + characters.NAMES.index("Latin")
    cyrillic = characters.FIRST_SCRIPT + characters.NAMES.index("Cyrillic")
    han = characters.FIRST_SCRIPT + characters.NAMES.index("Han and Kana")
    assert counts[:, latin].tolist() == [3, 0, 1, 0]
    assert counts[:, cyrillic].tolist() == [0, 0, 1, 0]
    assert counts[:, han].tolist() == [0, 0, 1, 0]
    assert counts[:, characters.CONTROL].tolist() == [0, 0, 1, 0]
    assert counts[:, characters.REPLACED].tolist() == [0, 0, 0, 1]
    assert int(counts.sum()) == 8  # punctuation, digits and spaces are in none


def test_the_script_ranges_do_not_overlap():
    taken: set[int] = set()
    for ranges in characters.SCRIPTS.values():
        for first, last in ranges:
            here = set(range(first, last + 1))
            assert not taken & here
            taken |= here


def test_misread_text_is_what_a_wrong_encoding_makes():
    for text in ("it’s", "“quoted”", "é", "ñandú", "£5", "a – b", "😀", "…"):
        wrong = text.encode("utf-8").decode("cp1252", "ignore")
        assert _misread(wrong), wrong
        assert not _misread(text)


# -- two splits ------------------------------------------------------------------------------------


@catches("alignlab.data.gate.repetition_checks", "alike[exact]", "alike[:0]")
@catches("alignlab.data.gate.repetition_checks", "alike[close & ~exact]", "alike[:0]")
def test_prompts_that_differ_in_case_space_or_punctuation(plain_tokenizer):
    rows = [*CLEAN[:5], shown("The  film was\na movie", " yes")]
    same = {"test": [shown(" the film was a movie", " no")]}
    near = {"test": [shown("the film, was a movie?", " no")]}
    far = {"test": [shown("the film was no movie", " no")]}
    found = by_code(findings(rows, plain_tokenizer, held_out=same))
    assert found == {"prompt_in_two_splits": ("error", (5,))}
    found = by_code(findings(rows, plain_tokenizer, held_out=near))
    assert found == {"near_prompt_in_two_splits": ("warning", (5,))}
    assert findings(rows, plain_tokenizer, held_out=far) == []


def test_formulas_are_not_nearly_the_same(plain_tokenizer):
    assert bare("What is 2+2, please?") == bare("what is 2+2 please")
    assert bare("What is 2+2 please?") != bare("What is 2-2 please?")
    assert bare("Is it 3.5 or so?") != bare("Is it 35 or so?")
    assert bare("Why?!") == b"why?!"  # too short to tell
    assert bare("“Why” – is it so…") == bare("why is it so")
    assert plain("A  b\n C") == b"a b c"


def test_a_skeleton_is_shared_by_all_that_are_nearly_the_same():
    texts = ["The film,\twas good!", "the  film was good", "«the film»\u2003was… good"]
    assert len({skeleton(text) for text in texts}) == 1
    assert len({bare(text) for text in texts}) == 1
    assert skeleton("it is 3.5") == skeleton("it is 35")  # told apart when looked at closely
    assert bare("is it 3.5 now") != bare("is it 35 now")


def test_texts_without_a_prompt_are_compared_as_a_whole(plain_tokenizer):
    rows = [shown("", "the film was good"), shown("", "the film was bad")]
    held_out = {"test": [shown("", "The film was bad ")]}
    found = by_code(findings(rows, plain_tokenizer, held_out=held_out))
    assert found == {"prompt_in_two_splits": ("error", (1,))}


@catches("alignlab.data.gate.repetition_checks", "inside and _digest(", "not inside and _digest(")
def test_answers_of_held_out_prompts(plain_tokenizer):
    answer = " the film was very good and the acting was very bad and the movie was a bad film"
    rows = [
        *CLEAN[:3],
        shown("other\n", " well," + answer + " and so on"),
        shown("another\n", answer[:60]),  # only a part of it
    ]
    held_out = {"test": [shown("the question\n", answer)]}
    found = by_code(findings(rows, plain_tokenizer, held_out=held_out))
    assert found == {"held_out_answer": ("warning", (3,))}
    assert findings(rows, plain_tokenizer, held_out=held_out, sampled=True) == []


def test_windows_depend_on_all_of_their_tokens_and_on_nothing_else():
    import numpy as np

    ids = np.arange(3 * WINDOW, dtype=np.int32)
    windows = rolling(np.concatenate([ids, ids]))
    assert len(windows) == 6 * WINDOW - WINDOW + 1
    assert windows[0] == windows[3 * WINDOW] == rolling(ids[:WINDOW])[0]
    for place in range(WINDOW):
        changed = ids[:WINDOW].copy()
        changed[place] += 1
        assert rolling(changed)[0] != windows[0]


# -- limits ----------------------------------------------------------------------------------------


def test_share_by_hand():
    share = Share(warn=0.1, error=0.5)
    # 1 of 20 = 0.05, 2 of 20 = 0.1, 9 of 20 = 0.45, 10 of 20 = 0.5
    said = [share.severity(n, 20) for n in (0, 1, 2, 9, 10, 20)]
    assert said == [None, None, "warning", "warning", "error", "error"]
    assert Share(warn=0.0, error=None).severity(0, 0) is None
    assert Share(warn=0.0, error=None).severity(1, 10**9) == "warning"
    assert Share(warn=None, error=1.0).severity(1, 2) is None
    assert Share(warn=None, error=0.0).severity(1, 2) == "error"


def test_limits_decide(plain_tokenizer):
    rows = [*CLEAN[:9], shown("the film\n", " good" * 30)]
    cut = {"lengths": (64, 16)}
    assert by_code(findings(rows, plain_tokenizer, **cut))["completion_truncated"][0] == "warning"
    strict = Limits(completion_truncated=Share(warn=0.0, error=0.1))
    found = findings(rows, plain_tokenizer, limits=strict, **cut)
    assert by_code(found)["completion_truncated"][0] == "error"
    loose = Limits(
        completion_truncated=Share(warn=0.2, error=None),
        tokens_truncated=Share(warn=None, error=None),
        length_outlier=None,
    )
    assert findings(rows, plain_tokenizer, limits=loose, **cut) == []


def test_the_configured_limits_are_the_defaults():
    """conf/gate/default.yaml and `Limits` say the same, field by field."""
    from alignlab import typed
    from alignlab.compose import compose

    assert typed.build(Limits, compose([])["gate"], "gate") == Limits()


def test_every_limit_has_a_comment():
    from dataclasses import fields

    from alignlab.compose import conf_dir

    lines = (conf_dir() / "gate" / "default.yaml").read_text().splitlines()
    assert [line.split(":")[0] for line in lines[1:]] == [f.name for f in fields(Limits)]
    assert all(" # " in line for line in lines[1:])
