"""Writes templates.json: chat templates in the styles of well-known models, and what Python's jinja2
makes of them in the environment of transformers' `apply_chat_template` (utils/chat_template_utils.py).

The templates are written for this test; they use the constructs the real ones use.

    pip install jinja2
    python make_templates.py
"""

import datetime
import json

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

NOW = 1_767_323_045  # 2026-01-02 03:04:05 UTC


class Generation(Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller):
        return caller()


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def strftime_now(format):
    return datetime.datetime.fromtimestamp(NOW, datetime.timezone.utc).strftime(format)


ENV = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
ENV.filters["tojson"] = tojson
ENV.globals["raise_exception"] = raise_exception
ENV.globals["strftime_now"] = strftime_now

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}

TEMPLATES = {
    "chatml": """{% for message in messages %}
{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}
{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}""",
    "chatml_default_system": "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nBe helpful<|im_end|>\\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    "llama3": """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Cutting Knowledge Date: December 2023\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{%- if tools is not none %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    "mistral": """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
        {{- raise_exception("After the optional system message, conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif %}
    {%- set ns.index = ns.index + 1 %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token }}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported, with the exception of an initial optional system message!") }}
    {%- endif %}
{%- endfor %}
""",
    "qwen25": """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are Qwen.' }}
    {%- endif %}
    {{- "\\n\\n# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou are Qwen.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- message.content }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
""",
    "qwen3": """{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning_content) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}""",
    "gemma": """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}""",
    "phi3": """{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}{{'<|system|>\\n' + message['content'] + '<|end|>\\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\\n' + message['content'] + '<|end|>\\n'}}{% elif message['role'] == 'assistant' %}{{'<|assistant|>\\n' + message['content'] + '<|end|>\\n'}}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}""",
    "zephyr": """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}""",
    "macros": """{%- macro line(role, text='-', upper=false) -%}
{{ role.upper() if upper else role.capitalize() }}: {{ text | default('none', true) }}
{%- endmacro -%}
{% for m in messages if m.role != 'system' -%}
{{ line(m.role, m.content, upper=loop.first) }} [{{ loop.index }}/{{ loop.length }}{{ ' last' if loop.last else '' }}]
{% else %}nobody{% endfor %}
{%- call(x) each([1, 2]) %}{{ x }};{% endcall %}
{%- filter upper %} done {{ messages | map(attribute='role') | join(',') }}{% endfilter -%}
""".replace("{%- call(x) each([1, 2]) %}{{ x }};{% endcall %}\n", ""),
    "generation": """{% for m in messages %}
{% if m.role == 'assistant' %}
  {%- generation -%}  {{ m.content }} {% endgeneration %}
{% else %}
<{{ m.role }}>{{ m.content }}
{% generation %}
x
{%- endgeneration +%}
{% endif %}
{% endfor %}""",
    "methods": """{% set d = {'b': 1, 'a': [1, 2.5, true, none, 'x"é'], 'c': {'k': {}, 'l': []}} %}
{{ d | tojson }}|{{ d | tojson(indent=2) }}|{{ d | tojson(ensure_ascii=true) }}|{{ d | tojson(separators=(',', ':'), sort_keys=true) }}
{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}{{ d.get('zz', 'no') }} {{ d.keys() | list }}
{% set t = messages[-1].content %}
{{ t.strip() }}|{{ t.split() }}|{{ t.replace('a', 'A') }}|{{ t.upper() }}|{{ 'ab cd'.title() }}|{{ t.find('l') }}|{{ t.count('l') }}
{{ t[:3] }}|{{ t[-3:] }}|{{ t[::-1] }}|{{ t | length }}|{{ t.startswith('H') }}|{{ 'x' in t }}|{{ t.splitlines() }}
{{ 7 // 2 }} {{ -7 // 2 }} {{ 7 % 3 }} {{ -7 % 3 }} {{ 7 / 2 }} {{ 2 ** 10 }} {{ 1 == 1.0 }} {{ none }} {{ 1.0 }} {{ 1.5e-7 | tojson }} {{ 1e20 | tojson }} {{ 'é\\u2028' | tojson }} {{ 'é\\u2028' | tojson(true) }}
{{ [1, 2] + [3] }} {{ 'a' ~ 1 ~ true }} {{ [3, 1, 2] | sort | join('-') }} {{ ['b', 'a'] | first }} {{ range(3) | list }}
{{ not_defined is defined }}{{ not_defined | default('dflt') }}{{ not_defined }} {{ messages is iterable }} {{ d is mapping }} {{ t is string }}
{% for i in range(10) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 5 %}{% break %}{% endif %}{{ i }}{% endfor %}
{{ '%s-%d' | format('a', 3) }} {{ strftime_now('%A %d %B %Y %H:%M') }}
{{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ (messages | map(attribute='role') | unique | list) }}
""",
    "content_parts": """{% for message in messages %}{% if message.content is string %}{{ message.role }}: {{ message.content }}
{% else %}{% for part in message.content %}{{ part.text }}{% endfor %}{% endif %}{% if message.name is defined %}({{ message.name }}){% endif %}{% endfor %}""",
}

user = lambda c, **k: {"role": "user", "content": c, **k}
bot = lambda c: {"role": "assistant", "content": c}
system = lambda c: {"role": "system", "content": c}

CHATS = [
    [user("Hello")],
    [system("  You are a pirate.\n"), user(" Hello & <b>welcome</b> 'friend' \"x\" \\ \n"), bot("  Arr! "), user("¿Qué? 日本 😀")],
    [user("one"), user("two", name="Bob")],
    [user("a"), bot("<think>\nhmm\n</think>\n\nanswer"), user("b"), bot("c")],
    [user("call"), {"role": "tool", "content": "{\"x\": 1}"}, {"role": "tool", "content": "2"}, user("")],
]

VARIABLES = [
    {},
    {"tools": [{"type": "function", "function": {"name": "f", "description": "a 'b' <c> é", "parameters": {"x": 1.5, "y": [], "z": None}}}],
     "enable_thinking": False},
]


def main():
    cases = []
    for name, source in TEMPLATES.items():
        for i, chat in enumerate(CHATS):
            for generate in [True, False]:
                for j, variables in enumerate(VARIABLES):
                    case = {"template": name, "chat": i, "add_generation_prompt": generate, "variables": j}
                    # Python gives None, not nothing, for what is not there.
                    context = {"tools": None, "documents": None, **SPECIAL, **variables}
                    try:
                        case["text"] = ENV.from_string(source).render(messages=chat, add_generation_prompt=generate, **context)
                    except jinja2.exceptions.TemplateError as e:
                        case["refused"] = str(e)
                    cases.append(case)
    golden = {"now": NOW, "special": SPECIAL, "templates": TEMPLATES, "chats": CHATS, "variables": VARIABLES, "cases": cases}
    with open("templates.json", "w", encoding="utf-8") as f:
        json.dump(golden, f, ensure_ascii=False, indent=0)
        f.write("\n")


main()
