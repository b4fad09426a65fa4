"""Every form, whole and cut at every place: calls, arguments and content are the same."""

import json
import time

import pytest

from descant_engine.text.tool_calls.events import Arguments, CallStarted, Content, ToolEvent
from descant_engine.text.tool_calls.parsers import FORMS, GENERIC_JSON, HERMES, LLAMA3_JSON, MISTRAL, PYTHONIC, form_for
from descant_engine.text.tool_calls.pythonic import MAX_CALL_CHARACTERS

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
    (
        "mistral",
        f"[TOOL_CALLS] get_weather [CALL_ID]a1[ARGS] {WEATHER_JSON}\n[TOOL_CALLS] now{{}} x",
        "",
        [WEATHER, NOW],
    ),
    ("mistral", "[TOOL_CALLS]get_weather{1", "[TOOL_CALLS]get_weather{1", []),
    ("mistral", f"[TOOL_CALLS]{'no' * 3000}{{}}", f"[TOOL_CALLS]{'no' * 3000}{{}}", []),
    ("mistral", "[TOOL_CALLS]no JSON", "[TOOL_CALLS]no JSON", []),
    ("json", f'[{{"name": "get_weather", "parameters": {WEATHER_JSON}}}]', "", [WEATHER]),
    ("json", f'```json\n{{"name": "get_weather", "arguments": {WEATHER_JSON}}}\n```', "", [WEATHER]),
    ("json", f'{{"arguments": {WEATHER_JSON}, "name": "get_weather"}}', "", [WEATHER]),
    ("json", '{"name": "now", "arguments": "{\\"a\\": 1}"}', "", [("now", {"a": 1})]),
    ("json", '{"name": "now", "arguments": {}, "parameters": {"a": 1}}', "", [NOW]),
    ("json", '[1, {"name": "now", "arguments": {}}]', '[1, {"name": "now", "arguments": {}}]', []),
    ("json", "[1, 2, 3]", "[1, 2, 3]", []),
    ("json", '[{"a": 1}, {"b": 2}]', '[{"a": 1}, {"b": 2}]', []),
    ("pythonic", """[get_weather(city='Rome }]\\\\ "x"', days=[1, 2]), now()]""", "", [WEATHER, NOW]),
    (
        "pythonic",
        "<|python_start|>[f(a=true, b=None, c={'k': -1.5}, d=(1,))]<|python_end|>",
        "",
        [("f", {"a": True, "b": None, "c": {"k": -1.5}, "d": [1]})],
    ),
    ("pythonic", "[ now() , now()\n]", "", [NOW, NOW]),
    ("pythonic", "[now(), open(1)]", "[, open(1)]", [NOW]),
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


LONG_FORMS = {
    "hermes": '<tool_call>{"name": "f", "arguments": {"a": "%s"}}</tool_call>',
    "hermes, text of JSON, more behind it": '<tool_call>{"name": "f", "arguments": "%s", "x": "%s"}</tool_call>',
    "hermes, never closed": "<tool_call>%s",
    "llama3_json": '{"name": "f", "parameters": {"a": "%s"}}',
    "mistral": '[TOOL_CALLS][{"name": "f", "arguments": {"a": "%s"}}]',
    "mistral, named": '[TOOL_CALLS]f[ARGS]{"a": "%s"}',
    "mistral, a name without end": "[TOOL_CALLS]%s",
    "json": '[{"arguments": {"a": "%s"}, "name": "f"}]',
    "pythonic": '[f(a="%s")]',
}
BLANK_FORMS = {
    "hermes": "a%s<tool_call>",
    "json": "%s{}",
    "json, in a list": "[%s",
    "pythonic": "%s[",
    "pythonic, in a list": "[f()%s",
}


def seconds_to_read(form: str, text: str) -> float:
    """Of a processor, in pieces of four characters."""
    parser = FORMS[form.partition(",")[0]].parser()
    begun = time.process_time()
    for start in range(0, len(text), 4):
        parser.feed(text[start : start + 4])
    parser.finish()
    return time.process_time() - begun


@pytest.mark.parametrize(
    ("form", "text", "filling"),
    [(form, text, "x") for form, text in LONG_FORMS.items()]
    + [(form, text, " ") for form, text in BLANK_FORMS.items()],
)
def test_reading_takes_time_in_proportion_to_the_text(form: str, text: str, filling: str) -> None:
    short = min(seconds_to_read(form, text.replace("%s", filling * 50_000)) for _ in range(2))
    long = min(seconds_to_read(form, text.replace("%s", filling * 100_000)) for _ in range(2))
    assert long < 3
    assert long < 3.5 * short + 0.1


@pytest.mark.parametrize("size", [4, 1 << 20])
def test_a_pythonic_call_beyond_the_bound_is_content(size: int) -> None:
    for num_characters, is_call in ((MAX_CALL_CHARACTERS, True), (MAX_CALL_CHARACTERS + 1, False)):
        call = 'f(a="")'
        call = f'f(a="{"x" * (num_characters - len(call))}")'
        text = f"[{call}]"
        content, calls = parse("pythonic", [text[i : i + size] for i in range(0, len(text), size)])
        assert (len(calls), content) == ((1, "") if is_call else (0, text))


@pytest.mark.parametrize("form", ["json", "pythonic"])
@pytest.mark.parametrize("size", [4, 1 << 20])
def test_an_output_that_is_blank_for_thousands_of_characters_is_content(form: str, size: int) -> None:
    text = " " * 5000 + "[]"
    assert parse(form, [text[i : i + size] for i in range(0, len(text), size)]) == (text, [])


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
