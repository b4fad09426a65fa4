"""Every form, whole and cut at every place: calls, arguments and content are the same."""

import json

import pytest

from descant_engine.text.tool_calls.events import Arguments, CallStarted, Content, ToolEvent
from descant_engine.text.tool_calls.parsers import FORMS, GENERIC_JSON, HERMES, LLAMA3_JSON, MISTRAL, PYTHONIC, form_for

Calls = list[tuple[str, object]]
WEATHER = ("get_weather", {"city": 'Rome }]\\ "x"', "days": [1, 2]})
NOW = ("now", {})
WEATHER_JSON = json.dumps(WEATHER[1])

CASES: list[tuple[str, str, str, Calls]] = [
    ("hermes", f'<tool_call>\n{{"name": "get_weather", "arguments": {WEATHER_JSON}}}\n</tool_call>', "", [WEATHER]),
    (
        "hermes",
        f'Let me see.\n<tool_call>{{"name": "get_weather", "arguments": {WEATHER_JSON}}}</tool_call>\n'
        '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
        "Let me see.",
        [WEATHER, NOW],
    ),
    ("hermes", "No call, but <tool and <b>tags</b>.", "No call, but <tool and <b>tags</b>.", []),
    ("qwen", '<tool_call>{"name": "now"}</tool_call>', "", [NOW]),
    ("hermes", "<tool_call>\nno JSON\n</tool_call>", "<tool_call>no JSON\n</tool_call>", []),
    ("hermes", "<tool_call>{'name': 'now'}</tool_call>.", "<tool_call>{'name': 'now'}</tool_call>.", []),
    ("hermes", '<tool_call>{"name": 5}</tool_call>', '<tool_call>{"name": 5}</tool_call>', []),
    ("hermes", '<tool_call>{"name": "f", \'x\'}</tool_call>', '<tool_call>{"name": "f", \'x\'}</tool_call>', []),
    ("hermes", '<tool_call>{"name": "now", "arguments": {}</tool_call> Done.', " Done.", [NOW]),
    ("hermes", '<tool_call>{"name": "now", "arguments": null}</tool_call>', "", [NOW]),
    ("llama3_json", '{"name": "Bo", "age": 3}', '{"name": "Bo", "age": 3}', []),
    ("json", '[{"name": "Bo"}, {"name": "Al"}]', '[{"name": "Bo"}, {"name": "Al"}]', []),
    ("llama3_json", f'{{"name": "get_weather", "parameters": {WEATHER_JSON}}}', "", [WEATHER]),
    (
        "llama3_json",
        f'<|python_tag|>{{"name": "get_weather", "parameters": {WEATHER_JSON}}}; {{"name": "now", "parameters": {{}}}}',
        "",
        [WEATHER, NOW],
    ),
    ("llama3_json", "The answer is {4}.", "The answer is {4}.", []),
    ("llama3_json", '{"answer": [4, {"a": 1}]} is it', '{"answer": [4, {"a": 1}]} is it', []),
    ("mistral", f'[TOOL_CALLS] [{{"name": "get_weather", "arguments": {WEATHER_JSON}}}]', "", [WEATHER]),
    (
        "mistral",
        f'[TOOL_CALLS][{{"name": "get_weather", "arguments": {WEATHER_JSON}}}, {{"name": "now", "arguments": {{}}}}]',
        "",
        [WEATHER, NOW],
    ),
    ("mistral", f"Yes.[TOOL_CALLS]get_weather[ARGS]{WEATHER_JSON}[TOOL_CALLS]now{{}}", "Yes.", [WEATHER, NOW]),
    ("mistral", "Plain [text].", "Plain [text].", []),
    ("mistral", '[TOOL_CALLS]now{}[TOOL_CALLS]f[ARGS]{"a', "", [NOW]),
    ("mistral", "[TOOL_CALLS]no JSON", "[TOOL_CALLS]no JSON", []),
    ("json", f'[{{"name": "get_weather", "parameters": {WEATHER_JSON}}}]', "", [WEATHER]),
    ("json", f'```json\n{{"name": "get_weather", "arguments": {WEATHER_JSON}}}\n```', "", [WEATHER]),
    ("json", f'{{"arguments": {WEATHER_JSON}, "name": "get_weather"}}', "", [WEATHER]),
    ("json", '{"name": "now", "arguments": "{\\"a\\": 1}"}', "", [("now", {"a": 1})]),
    ("json", "[1, 2, 3]", "[1, 2, 3]", []),
    ("json", '[{"a": 1}, {"b": 2}]', '[{"a": 1}, {"b": 2}]', []),
    ("pythonic", """[get_weather(city='Rome }]\\\\ "x"', days=[1, 2]), now()]""", "", [WEATHER, NOW]),
    (
        "pythonic",
        "<|python_start|>[f(a=true, b=None, c={'k': -1.5}, d=(1,))]<|python_end|>",
        "",
        [("f", {"a": True, "b": None, "c": {"k": -1.5}, "d": [1]})],
    ),
    ("pythonic", "[1] says so", "[1] says so", []),
    ("pythonic", "[open('/etc/passwd')]", "[open('/etc/passwd')]", []),
    ("pythonic", "[f(a=__import__('os'))]", "[f(a=__import__('os'))]", []),
    ("pythonic", "[f(a=1e999)]", "[f(a=1e999)]", []),
    ("pythonic", "[f(**{'a': 1})]", "[f(**{'a': 1})]", []),
]


def parse(name: str, pieces: list[str]) -> tuple[str, Calls]:
    parser = FORMS[name].parser()
    events: list[ToolEvent] = [event for piece in pieces for event in parser.feed(piece)]
    events += parser.finish()
    content = "".join(event.text for event in events if isinstance(event, Content))
    calls: list[tuple[str, str]] = []
    for event in events:
        if isinstance(event, CallStarted):
            calls.append((event.name, ""))
        elif isinstance(event, Arguments):
            calls[-1] = (calls[-1][0], calls[-1][1] + event.text)
    return content, [(name, json.loads(arguments)) for name, arguments in calls]


@pytest.mark.parametrize(("name", "text", "content", "calls"), CASES)
def test_whole_text(name: str, text: str, content: str, calls: Calls) -> None:
    assert parse(name, [text]) == (content, calls)


@pytest.mark.parametrize(("name", "text", "content", "calls"), CASES)
def test_text_cut_anywhere_gives_the_same(name: str, text: str, content: str, calls: Calls) -> None:
    assert parse(name, list(text)) == (content, calls)
    for place in range(1, len(text)):
        assert parse(name, [text[:place], text[place:]]) == (content, calls), (text[:place], text[place:])


def test_arguments_are_passed_on_before_they_are_complete() -> None:
    parser = HERMES.parser()
    parser.feed('<tool_call>{"name": "f", "arguments": ')
    assert parser.feed('{"city": "Ro') == [Arguments('{"city": "Ro')]
    assert parser.feed('me"}') == [Arguments('me"}')]


@pytest.mark.parametrize("name", ["hermes", "llama3_json", "mistral", "json"])
def test_a_call_that_breaks_off_keeps_what_was_passed_on(name: str) -> None:
    opening = {"hermes": "<tool_call>", "mistral": "[TOOL_CALLS]["}.get(name, "")
    parser = FORMS[name].parser()
    events = parser.feed(opening + '{"name": "f", "arguments": {"a": 1') + parser.finish()
    assert events == [CallStarted("f"), Arguments('{"a": 1')]


@pytest.mark.parametrize("name", ["llama3_json", "json"])
@pytest.mark.parametrize(
    "text", ['{"name": "Bo", "age": 3}', '{"age": {"name": "now"}}', '[{"name": "Bo"}, {"name": "now"}]', '{"name": 3}']
)
def test_with_names_given_nothing_else_is_a_call(name: str, text: str) -> None:
    for size in (1, 2, 5, len(text)):
        parser = FORMS[name].parser(frozenset({"now"}))
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        events = [event for piece in pieces for event in parser.feed(piece)] + parser.finish()
        assert all(isinstance(event, Content) for event in events)
        assert "".join(event.text for event in events) == text
    call = FORMS[name].parser(frozenset({"now"}))
    assert call.feed('{"name": "now", "parameters": {"a": 1}}') == [CallStarted("now"), Arguments('{"a": 1}')]


def test_content_is_passed_on_as_soon_as_it_is_no_call() -> None:
    parser = GENERIC_JSON.parser(frozenset({"now"}))
    assert parser.feed('{"name": "Bo"') == [Content('{"name": "Bo"')]
    assert parser.feed(', "a') == [Content(', "a')]


def test_a_broken_pythonic_call_is_content() -> None:
    parser = PYTHONIC.parser()
    assert parser.feed("[f(a=1, b=") + parser.finish() == [Content("[f(a=1, b=")]


@pytest.mark.parametrize(
    ("template", "form"),
    [
        ("{{ '<tool_call>' }}", HERMES),
        ("{{ '[TOOL_CALLS]' }}", MISTRAL),
        ('{"name": function name, "parameters": dictionary of argument', LLAMA3_JSON),
        ("<|python_start|>", PYTHONIC),
        ("{{ messages }}", GENERIC_JSON),
        (None, GENERIC_JSON),
    ],
)
def test_the_chat_template_tells_the_form(template: str | None, form: object) -> None:
    assert form_for(template) is form
