"""tickets: a support message becomes one line of JSON with category, product, priority and reference."""

import json
from random import Random

from demo_tasks.task import Example, Split, Task

FIELDS = ("category", "product", "priority", "reference")

_PRODUCTS: dict[Split, tuple[str, ...]] = {
    "train": (
        "Atlas Mail", "Nimbus Drive", "Quill Editor", "Harbor CRM", "Beacon Chat", "Orchid Payroll", "Falcon VPN",
        "Maple Calendar", "Summit Reports", "Pixel Scanner", "Lumen Projector", "Vertex Laptop", "Willow Headset",
        "Cobalt Router", "Ember Tablet", "Granite Backup", "Sparrow Forms", "Tundra Phone", "Juniper Desk",
        "Opal Printer",
    ),
    "held_out": ("Cedar Notes", "Raven Monitor", "Delta Planner", "Coral Keyboard", "Polar Wiki", "Zephyr Camera"),
}  # fmt: skip

_PROBLEMS = {
    "billing": (
        "I was charged twice for {product}.",
        "The invoice for {product} shows the wrong amount.",
        "Please refund my payment for {product}.",
        "Why did the price of my {product} plan go up?",
        "My card was billed for {product} after I cancelled.",
    ),
    "login": (
        "I can't sign in to {product}.",
        "{product} says my password is wrong.",
        "My {product} account is locked.",
        "The reset link for {product} never arrives.",
        "I lost access to {product} after changing my phone number.",
    ),
    "bug": (
        "{product} crashes when I open a file.",
        "{product} shows an error message and freezes.",
        "Since the last update {product} is very slow.",
        "The save button in {product} does nothing.",
        "{product} keeps losing my settings.",
    ),
    "delivery": (
        "My {product} has not arrived yet.",
        "The {product} was sent to the wrong address.",
        "Where is the {product} that I bought?",
        "The box with the {product} came damaged.",
        "The courier left without handing over my {product}.",
    ),
}

_URGENCY = {
    "high": ("This is urgent!", "We cannot work at all.", "I need this solved today.", "Everything is blocked, hurry."),
    "low": ("No rush.", "It can wait until next week.", "Not urgent, just letting you know.", "Take your time."),
    "normal": ("", "Can you help?", "Please have a look.", "Thanks in advance."),
}

_GREETINGS = ("", "", "Hi,", "Hello,", "Good morning.", "Dear support,")
_REFERENCES = ("Order {number}.", "My ticket is {number}.", "Reference {number}.", "Case {number}.")


def _reference(random: Random) -> str | None:
    if random.random() < 0.35:
        return None
    number = str(random.randint(1000, 99999))
    return random.choice(("", "INV-", "A-", "SR-")) + number


def _make(random: Random, split: Split) -> Example:
    product = random.choice(_PRODUCTS[split])
    category = random.choice(tuple(_PROBLEMS))
    priority = random.choice(tuple(_URGENCY))
    reference = _reference(random)
    parts = [
        random.choice(_GREETINGS),
        random.choice(_PROBLEMS[category]).format(product=product),
        random.choice(_REFERENCES).format(number=reference) if reference else "",
        random.choice(_URGENCY[priority]),
    ]
    ticket = dict(zip(FIELDS, (category, product, priority, reference), strict=True))
    return Example(" ".join(part for part in parts if part), json.dumps(ticket))


def _parse(text: str) -> dict[str, object] | None:
    """The ticket in `text` if the whole of it is one JSON object with exactly our fields."""
    try:
        parsed = json.loads(text)
    except ValueError:
        return None
    return parsed if isinstance(parsed, dict) and tuple(sorted(parsed)) == tuple(sorted(FIELDS)) else None


def _score(example: Example, answer: str) -> dict[str, bool]:
    wanted, got = json.loads(example.answer), _parse(answer.strip())
    fields = {field: got is not None and got[field] == wanted[field] for field in FIELDS}
    return {"valid_json": got is not None, **fields, "exact": all(fields.values())}


TICKETS = Task(
    name="tickets",
    make=_make,
    score=_score,
    instruction=(
        'Turn this support message into one JSON object with the fields "category" (billing, login, bug or delivery), '
        '"product", "priority" (low, normal or high) and "reference" (a string or null). Reply with the JSON only.\n\n'
    ),
)
