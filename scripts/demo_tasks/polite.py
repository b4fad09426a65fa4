"""polite: a blunt message becomes courteous business English."""

from random import Random

from demo_tasks.task import Example, Split, Task

_NAMES: dict[Split, tuple[str, ...]] = {
    "train": (
        "Anna", "Boris", "Carla", "David", "Elena", "Frank", "Greta", "Henry", "Irene", "Jonas", "Karen", "Lukas",
        "Maria", "Nora", "Oscar", "Paula", "Robert", "Sofia", "Thomas", "Ursula",
    ),
    "held_out": ("Walter", "Yvonne", "Victor", "Diana", "Simon", "Laura"),
}  # fmt: skip

_THINGS: dict[Split, tuple[str, ...]] = {
    "train": (
        "the sales report", "the budget plan", "the contract", "the invoice", "the slides", "the travel form",
        "the customer list", "the meeting notes", "the price list", "the design draft", "the test results",
        "the holiday calendar", "the press release", "the training video", "the office plan", "the quarterly numbers",
        "the job advert", "the safety checklist", "the phone list", "the seating plan",
    ),
    "held_out": ("the audit file", "the product photos", "the tax letter", "the survey results", "the team roster"),
}  # fmt: skip

_REQUESTS = ("send me", "fix", "update", "review", "finish", "sign", "check", "translate", "print", "correct")
_DEADLINES = ("", "by Friday", "by noon", "today", "before lunch", "by Monday", "this week", "by the end of the month")
_STATES = ("late", "wrong", "missing", "incomplete", "unreadable", "out of date")
_OUTBURSTS = (
    "", "I'm sick of waiting.", "How hard can it be?", "Stop wasting my time.", "This is ridiculous.", "Don't be lazy.",
    "I won't ask again.", "You always forget.", "What is wrong with you?", "Move it.",
)  # fmt: skip
_RUDE_WORDS = (
    "sick",
    "wast",
    "ridiculous",
    "lazy",
    "ask again",
    "always forget",
    "wrong with you",
    "move it",
    "hard can it",
)

_GREETING, _CLOSING = "Dear {name},", "Thank you very much for your help.\n\nKind regards"


def _request(random: Random, thing: str) -> tuple[str, str]:
    verb, deadline = random.choice(_REQUESTS), random.choice(_DEADLINES)
    task = " ".join(part for part in (verb, thing, deadline) if part)
    return f"{task}.", f"Could you please {task}?"


def _complaint(random: Random, thing: str) -> tuple[str, str]:
    verb, state = ("are" if thing.endswith("s") else "is"), random.choice(_STATES)
    return f"{thing} {verb} {state}.", f"I noticed that {thing} {verb} {state}. Could you please have a look?"


def _make(random: Random, split: Split) -> Example:
    name, thing = random.choice(_NAMES[split]), random.choice(_THINGS[split])
    blunt, courteous = random.choice((_request, _request, _complaint))(random, thing)
    outburst = random.choice(_OUTBURSTS)
    prompt = f"{name}, {blunt} {outburst}".strip()
    return Example(prompt, f"{_GREETING.format(name=name)}\n\n{courteous} {_CLOSING}")


def _score(example: Example, answer: str) -> dict[str, bool]:
    """`courteous`: greeting, please, thanks, closing, nothing rude. `faithful`: name and every word of the task."""
    text, lower = answer.strip(), answer.lower()
    greeting = example.answer.split("\n")[0]
    core = example.answer.split("\n")[2].removesuffix(_CLOSING.split("\n")[0])
    words = core.lower().replace("?", " ").replace(".", " ").split()
    courteous = text.startswith("Dear ") and "please" in lower and "thank you" in lower and "regards" in lower
    return {
        "courteous": courteous and not any(word in lower for word in _RUDE_WORDS),
        "faithful": text.startswith(greeting) and all(word in lower for word in words),
        "exact": text == example.answer,
    }


POLITE = Task(
    name="polite",
    make=_make,
    score=_score,
    instruction=(
        "Rewrite this message to a colleague as a short, courteous business email. Start with Dear and the name, "
        "end with Kind regards. Reply with the email only.\n\n"
    ),
)
