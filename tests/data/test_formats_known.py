"""Rows with the fields of well-known public data sets, each read as what it is.

The fields are those of the sets' cards; the texts are not theirs.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from format_rows import A, B, S, U, group, said, share

from alignlab.data.formats.registry import detect
from alignlab.errors import DataError

TALK = share(("human", "q"), ("gpt", "a"))
TOOLS = '[{"name": "f", "description": "d", "parameters": {"x": {"type": "int"}}}]'
MARKS = {"honesty": {"Rating": "3", "Rationale": "r"}}
SETS = {
    # SFT
    "tatsu-lab/alpaca": {"instruction": "q", "input": "", "output": "a", "text": "Below"},
    "databricks/dolly-15k": {"instruction": "q", "context": "", "response": "a", "category": "qa"},
    "Open-Orca/OpenOrca": {"id": "1", "system_prompt": "s", "question": "q", "response": "a"},
    "HuggingFaceH4/ultrachat_200k": {"prompt": "q", "prompt_id": "1", "messages": [U, A]},
    "allenai/tulu-3-sft-mixture": {"id": "1", "messages": [U, A], "source": "x"},
    "GAIR/lima": {"conversations": ["q", "a"], "source": "x"},
    "teknium/OpenHermes-2.5": {
        "conversations": TALK,
        "system_prompt": None,
        "model": None,
        "title": "t",
        "source": "x",
        "category": None,
        "id": None,
    },
    "Open-Orca/SlimOrca": {
        "conversations": [
            {"from": "human", "value": "q", "weight": None},
            {"from": "gpt", "value": "a", "weight": 1.0},
        ]
    },
    "LDJnr/Capybara": {"source": "x", "conversation": [{"input": "q", "output": "a"}]},
    "lmsys/lmsys-chat-1m": {
        "conversation_id": "1",
        "model": "m",
        "conversation": [U, A],
        "turn": 1,
    },
    "hiyouga/glaive-function-calling-v2-sharegpt": {"conversations": TALK, "tools": TOOLS},
    "Salesforce/xlam-function-calling-60k": {
        "id": 0,
        "query": "q",
        "tools": TOOLS,
        "answers": '[{"name": "f", "arguments": {"x": 1}}]',
    },
    "glaiveai/glaive-function-calling-v2": {
        "system": 'SYSTEM: You can call -\n{"name": "f", "description": "d", "parameters": {}}\n',
        "chat": "USER: q\n\n\nASSISTANT: a <|endoftext|>\n\n\n",
    },
    "NousResearch/hermes-function-calling-v1": {
        "id": "1",
        "conversations": share(
            ("system", f"<tools> {TOOLS} </tools>"),
            ("human", "q"),
            ("gpt", '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'),
            ("tool", "<tool_response>\n4\n</tool_response>"),
            ("gpt", "a"),
        ),
        "category": "c",
        "subcategory": "s",
        "task": "t",
    },
    "Team-ACE/ToolACE": {
        "system": f"You can invoke:\n{TOOLS}",
        "conversations": share(("user", "q"), ("assistant", "[f(x=1)]")),
    },
    "Muennighoff/flan": {"inputs": "q", "targets": "a", "task": "t"},
    "Muennighoff/natural-instructions": {
        "definition": "d",
        "inputs": "q",
        "targets": "a",
        "id": "1",
    },
    "yizhongw/self_instruct": {"instruction": "q", "instances": [{"input": "", "output": "a"}]},
    "tatsu-lab/alpaca_eval": {"instruction": "q", "output": "a", "generator": "g", "dataset": "d"},
    # preferences
    "Anthropic/hh-rlhf": {
        "chosen": "\n\nHuman: q\n\nAssistant: a",
        "rejected": "\n\nHuman: q\n\nAssistant: b",
    },
    "Dahoas/full-hh-rlhf": {"prompt": "q", "response": "a", "chosen": "a", "rejected": "b"},
    "Intel/orca_dpo_pairs": {"system": "s", "question": "q", "chosen": "a", "rejected": "b"},
    "argilla/dpo-mix-7k": {
        "dataset": "d",
        "chosen": [U, A],
        "rejected": [U, B],
        "chosen_rating": 5.0,
        "rejected_rating": 4.0,
    },
    "HuggingFaceH4/ultrafeedback_binarized": {
        "prompt": "q",
        "prompt_id": "1",
        "chosen": [U, A],
        "rejected": [U, B],
        "messages": [U, A],
        "score_chosen": 8.5,
        "score_rejected": 7.5,
    },
    "argilla/ultrafeedback-binarized-preferences": {
        "source": "x",
        "instruction": "q",
        "chosen_response": "a",
        "rejected_response": "b",
        "chosen_avg_rating": 5.0,
        "rejected_avg_rating": 4.0,
        "chosen_model": "m",
    },
    "allenai/llama-3.1-tulu-3-8b-preference-mixture": {
        "id": "1",
        "source": "x",
        "prompt": "q",
        "chosen": [U, A],
        "rejected": [U, B],
        "chosen_model": "m",
    },
    "trl-lib/tldr-preference": {"prompt": "q", "chosen": " a", "rejected": " b"},
    "lvwerra/stack-exchange-paired": {
        "qid": 1,
        "question": "q",
        "date": "d",
        "metadata": ["u"],
        "response_j": "a",
        "response_k": "b",
    },
    "PKU-Alignment/PKU-SafeRLHF": {
        "prompt": "q",
        "response_0": "a",
        "response_1": "b",
        "is_response_0_safe": True,
        "is_response_1_safe": False,
        "better_response_id": 0,
        "safer_response_id": 0,
    },
    "nvidia/HelpSteer3": {
        "domain": "general",
        "language": "english",
        "context": [U],
        "response1": "a",
        "response2": "b",
        "overall_preference": -1,
        "individual_preference": [{"score": -1}],
    },
    "nvidia/HelpSteer2 (preference)": {
        "split": "train",
        "prompt": "q",
        "response_1": "a",
        "response_2": "b",
        "preference_strength": -2,
        "preference_statement": "s",
    },
    "lmsys/chatbot_arena_conversations": {
        "question_id": "1",
        "model_a": "x",
        "model_b": "y",
        "winner": "tie",
        "conversation_a": [U, A],
        "conversation_b": [U, B],
        "turn": 1,
    },
    "stanfordnlp/SHP": {
        "post_id": "1",
        "history": "q",
        "human_ref_A": "a",
        "human_ref_B": "b",
        "labels": 1,
        "score_A": 2,
        "score_B": 1,
        "score_ratio": 2.0,
    },
    "openai/webgpt_comparisons": {
        "question": {"dataset": "d", "id": "1", "full_text": "q"},
        "quotes_0": {"title": [], "extract": []},
        "answer_0": "a",
        "tokens_0": {"prefix": [], "completion": []},
        "score_0": 0.5,
        "answer_1": "b",
        "score_1": -0.5,
    },
    "openai/summarize_from_feedback": {
        "info": {"id": "1", "post": "p", "title": "t", "subreddit": "s", "article": None},
        "summaries": [{"text": " a", "policy": "x"}, {"text": " b", "policy": "y"}],
        "choice": 1,
        "worker": "w",
        "split": "train",
    },
    "openbmb/UltraFeedback": {
        "source": "x",
        "instruction": "q",
        "models": ["m"],
        "completions": [
            {"model": "m", "response": "a", "annotations": MARKS, "overall_score": 7.0}
        ],
        "correct_answers": ["None"],
    },
    "berkeley-nest/Nectar": {
        "prompt": "\n\nHuman: q\n\nAssistant: ",
        "answers": [{"answer": "a", "model": "m", "rank": 1.0}],
        "turns": 1,
        "num_responses": 7,
        "source": ["x"],
        "good_natured": True,
    },
    "HuggingFaceH4/stack-exchange-preferences": {
        "qid": 1,
        "question": "q",
        "answers": [{"answer_id": 1, "author": "x", "pm_score": 3, "selected": True, "text": "a"}],
    },
    "nvidia/HelpSteer2": {
        "prompt": "q",
        "response": "a",
        "helpfulness": 3,
        "correctness": 3,
        "coherence": 4,
        "complexity": 1,
        "verbosity": 1,
    },
    "trl-lib/kto-mix-14k": {"prompt": [U], "completion": [A], "label": True},
    # prompts, checks, texts
    "openai/gsm8k": {"question": "q", "answer": "so\n#### 4"},
    "hendrycks/competition_math": {
        "problem": "q",
        "level": "Level 1",
        "type": "Algebra",
        "solution": "\\boxed{4}",
    },
    "HuggingFaceH4/MATH-500": {
        "problem": "q",
        "solution": "\\boxed{4}",
        "answer": "4",
        "subject": "Algebra",
        "level": 1,
        "unique_id": "1",
    },
    "BytedTsinghua-SIA/DAPO-Math-17k": {
        "data_source": "math_dapo",
        "prompt": [U],
        "ability": "MATH",
        "reward_model": {"ground_truth": "4", "style": "rule-lighteval/MATH_v2"},
        "extra_info": {"index": "1"},
    },
    "allenai/RLVR-GSM": {"messages": [U], "ground_truth": "4", "dataset": "gsm8k"},
    "google/IFEval": {
        "key": 1,
        "prompt": "q",
        "instruction_id_list": ["x"],
        "kwargs": [{"num_words": None}],
    },
    "lmarena-ai/arena-hard": {"question_id": "1", "category": "c", "turns": [{"content": "q"}]},
    "openai/openai_humaneval": {
        "task_id": "1",
        "prompt": "q",
        "canonical_solution": "a",
        "test": "t",
        "entry_point": "f",
    },
    "roneneldan/TinyStories": {"text": "t"},
    "allenai/c4": {"text": "t", "timestamp": "2019", "url": "http://"},
    "stanfordnlp/imdb": {"text": "t", "label": 0},
}
READ_AS = """
alpaca alpaca prompt_completion messages messages dialogue sharegpt sharegpt dialogue sharegpt
sharegpt function_calls glaive sharegpt sharegpt prompt_completion prompt_completion self_instruct
alpaca
preference preference preference preference preference preference preference preference preference
side_by_side side_by_side side_by_side side_by_side shp webgpt_comparisons summary_comparisons
judged_completions judged_completions judged_completions attributes unpaired
question_answer worked_solution worked_solution verifiable verifiable prompt_only prompt_turns
prompt_only text text text
"""


@pytest.mark.parametrize(("name", "form"), [*zip(SETS, READ_AS.split(), strict=True)])
def test_known_sets(name, form):
    assert detect([SETS[name]]) == form
    made = group(SETS[name])
    assert made.prompt or made.completions
    assert "q" in str(made.prompt) or form in ("text", "summary_comparisons")


def test_a_system_prompt_of_orca_and_intel():
    for name in ("Open-Orca/OpenOrca", "Intel/orca_dpo_pairs"):
        assert group(SETS[name]).prompt == (S, U)


def test_flan_is_joined_as_it_stands_and_a_definition_goes_before_its_inputs():
    assert group(SETS["Muennighoff/flan"]).prompt == "q"
    assert group(SETS["Muennighoff/natural-instructions"]).prompt == "d\n\nq\n\n"


def test_calls_of_xlam():
    made = group(SETS["Salesforce/xlam-function-calling-60k"])
    call = {"type": "function", "id": "call00001", "function": {"name": "f", "arguments": {"x": 1}}}
    assert made.prompt == (U,)
    assert made.completions == ((said("assistant", "", tool_calls=[call]),),)
    assert made.tools[0]["function"]["name"] == "f"


def test_a_response_beside_chosen_and_rejected_is_no_third_answer():
    made = group(SETS["Dahoas/full-hh-rlhf"])
    assert (made.prompt, made.completions) == ("q", ("a", "b"))
    assert made.meta == {"response": "a"}


def test_what_needs_a_word_from_a_person():
    numina = {"source": "x", "problem": "p", "solution": "s", "messages": [U, A]}
    magpie = {"conversations": TALK, "instruction": "q", "response": "a"}
    for row in (numina, magpie):
        with pytest.raises(DataError, match="fits several formats"):
            detect([row])


def test_the_table_of_sets_on_the_page():
    page = Path(__file__).resolve().parents[2] / "alignlab" / "data" / "README.md"
    text = page.read_text(encoding="utf-8").split("## Public sets that load as they are")[1]
    lines = re.findall(r"^\| `(\w+)` \| (.+) \|$", text.split("\n## ")[0], flags=re.M)
    said = {name: form for form, names in lines for name in names.split(", ")}
    assert said == dict(zip(SETS, READ_AS.split(), strict=True))
