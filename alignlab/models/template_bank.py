"""Chat templates of our own: for tokenizers that bring none, or none with tools and thoughts."""

from __future__ import annotations

# Role names as plain text, for any tokenizer; EOS ends what the assistant says.
DIALOGUE = (
    "{% for message in messages %}"
    "{{ message['role'] | capitalize + ':' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ ' ' + message['content'] + eos_token }}{% endgeneration %}{{ '\n\n' }}"
    "{% else %}{{ ' ' + message['content'] + '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ message['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Tools in the system message, calls and results as JSON between tags (as Hermes models write
# them). A thought stands between <think> tags before its answer; those of turns before the last
# question are left out. There are no marks of {% generation %}: where a thought is left out, a turn
# is another one than was sampled, and a loss on it is refused rather than made without the thought.
_TOOLS = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% if tools %}{% set ns.system = '' %}{% if messages[0]['role'] == 'system' %}"
    "{% set ns.system = messages[0]['content'] + '\n\n' %}{% endif %}"
    "{{ OPEN('system') + ns.system + 'These functions can be called:\n<tools>\n' }}"
    "{% for tool in tools %}{{ tool | tojson + '\n' }}{% endfor %}"
    '{{ \'</tools>\nA call is written as <tool_call>\n{"name": name, "arguments": object}\n'
    "</tool_call>' + END }}{% endif %}"
    "{% for m in messages %}{% if m['role'] == 'system' %}"
    "{% if not tools %}{{ OPEN('system') + m['content'] + END }}{% endif %}"
    "{% elif m['role'] == 'tool' %}"
    "{{ OPEN('tool') + '<tool_response>\n' + m['content'] + '\n</tool_response>' + END }}"
    "{% elif m['role'] == 'assistant' %}"
    "{% set content = m['content'] or '' %}{% set thought = '' %}"
    "{% if m['reasoning_content'] is string %}{% set thought = m['reasoning_content'] %}"
    "{% elif '</think>' in content %}"
    "{% set thought = content.split('</think>')[:-1] | join('</think>') %}"
    "{% set thought = thought.split('<think>')[-1] %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ OPEN('assistant') + FIRST }}"
    "{% if thought | trim and loop.index0 > ns.last %}"
    "{{ '<think>\n' + thought.strip('\n') + '\n</think>\n\n' }}{% endif %}{{ content }}"
    "{% for call in m['tool_calls'] or [] %}"
    "{{ ('\n' if content or not loop.first else '') + '<tool_call>\n{\"name\": ' }}"
    "{{ call['function']['name'] | tojson + ', \"arguments\": ' }}"
    "{{ call['function']['arguments'] | tojson + '}\n</tool_call>' }}{% endfor %}{{ EOT }}"
    "{% else %}{{ OPEN(m['role']) + m['content'] + END }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ OPEN('assistant') }}{% endif %}"
)


def _tools(opening: str, end: str, end_of_answer: str, first: str) -> str:
    """The template of tools with its macro: how a turn opens, and how it ends."""
    macro = "{% macro OPEN(role) %}" + opening + "{% endmacro %}"
    body = _TOOLS.replace("FIRST", first).replace("EOT", end_of_answer).replace("END", end)
    return macro + body


CHATML_TOOLS = _tools(
    "{{ '<|im_start|>' + role + '\n' }}", "'<|im_end|>\n'", "'<|im_end|>\n'", "''"
)
DIALOGUE_TOOLS = _tools(
    "{{ role | capitalize + ':' + ('' if role == 'assistant' else ' ') }}",
    "'\n\n'",
    "eos_token + '\n\n'",
    "' '",
)
BANK = {
    "dialogue": DIALOGUE,
    "chatml": CHATML,
    "dialogue_tools": DIALOGUE_TOOLS,
    "chatml_tools": CHATML_TOOLS,
}
