"""sql: a table's columns and a question become one SQL query."""

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from demo_tasks.task import Example, Split, Task


@dataclass(frozen=True, slots=True)
class Table:
    name: str
    texts: dict[str, tuple[str, ...]]
    """Text columns and values that occur in them."""
    numbers: tuple[str, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        return ("id", *self.texts, *self.numbers)


_CITIES = ("Paris", "Lima", "Oslo", "Cairo", "Quito", "Berlin", "Tokyo")
_TEAMS = ("Sales", "Finance", "Legal", "Design", "Support")
_STATES = ("open", "closed", "paid", "late", "draft")

_TABLES: dict[Split, tuple[Table, ...]] = {
    "train": (
        Table("orders", {"city": _CITIES, "status": _STATES}, ("total", "items")),
        Table("employees", {"department": _TEAMS, "office": _CITIES}, ("salary", "age")),
        Table("invoices", {"client": ("Acme", "Globex", "Initech"), "status": _STATES}, ("amount",)),
        Table("projects", {"owner": ("Ana", "Ben", "Chloe"), "status": _STATES}, ("budget", "hours")),
        Table("meetings", {"room": ("Blue", "Green", "Red"), "host": ("Dan", "Eve", "Finn")}, ("minutes",)),
        Table("products", {"category": ("toys", "books", "tools"), "brand": ("Nova", "Zenit")}, ("price", "stock")),
        Table("flights", {"origin": _CITIES, "airline": ("Skyline", "Aero")}, ("distance", "fare")),
        Table("suppliers", {"country": ("France", "Peru", "Japan"), "city": _CITIES}, ("rating",)),
        Table("customers", {"city": _CITIES, "plan": ("basic", "pro")}, ("points", "visits")),
        Table("tickets", {"team": _TEAMS, "status": _STATES}, ("votes", "hours")),
        Table("courses", {"teacher": ("Gus", "Hana", "Ivo"), "level": ("easy", "hard")}, ("seats", "price")),
        Table("vehicles", {"brand": ("Volta", "Terra"), "color": ("white", "black")}, ("mileage", "year")),
    ),
    "held_out": (
        Table("contracts", {"vendor": ("Umbra", "Hooli"), "status": _STATES}, ("value", "months")),
        Table("warehouses", {"city": ("Rome", "Delhi", "Accra"), "type": ("cold", "dry")}, ("capacity", "shelves")),
        Table("trips", {"traveler": ("Mia", "Noah", "Olga"), "city": ("Rome", "Delhi")}, ("cost", "days")),
        Table("books", {"author": ("Woolf", "Borges"), "language": ("Danish", "Greek")}, ("pages", "copies")),
    ),
}

_AGGREGATES = {"average": "AVG", "total": "SUM", "highest": "MAX", "lowest": "MIN"}


def _count(random: Random, table: Table) -> tuple[str, str]:
    return f"How many {table.name} are there?", f"SELECT COUNT(*) FROM {table.name};"


def _count_where(random: Random, table: Table) -> tuple[str, str]:
    column = random.choice(tuple(table.texts))
    value = random.choice(table.texts[column])
    question = f"How many {table.name} have the {column} {value}?"
    return question, f"SELECT COUNT(*) FROM {table.name} WHERE {column} = '{value}';"


def _aggregate(random: Random, table: Table) -> tuple[str, str]:
    word, column = random.choice(tuple(_AGGREGATES)), random.choice(table.numbers)
    return (
        f"What is the {word} {column} of all {table.name}?",
        f"SELECT {_AGGREGATES[word]}({column}) FROM {table.name};",
    )


def _aggregate_where(random: Random, table: Table) -> tuple[str, str]:
    word, number, column = (
        random.choice(tuple(_AGGREGATES)),
        random.choice(table.numbers),
        random.choice(tuple(table.texts)),
    )
    value = random.choice(table.texts[column])
    question = f"What is the {word} {number} of {table.name} with the {column} {value}?"
    return question, f"SELECT {_AGGREGATES[word]}({number}) FROM {table.name} WHERE {column} = '{value}';"


def _list_column(random: Random, table: Table) -> tuple[str, str]:
    column = random.choice(table.columns[1:])
    return f"List the {column} of all {table.name}.", f"SELECT {column} FROM {table.name};"


def _compare(random: Random, table: Table) -> tuple[str, str]:
    column, limit = random.choice(table.numbers), random.randint(2, 900)
    word, sign = random.choice((("above", ">"), ("below", "<")))
    return (
        f"Which {table.name} have a {column} {word} {limit}?",
        f"SELECT * FROM {table.name} WHERE {column} {sign} {limit};",
    )


def _top(random: Random, table: Table) -> tuple[str, str]:
    column, count = random.choice(table.numbers), random.randint(2, 20)
    word, order = random.choice((("highest", "DESC"), ("lowest", "ASC")))
    question = f"Show the {count} {table.name} with the {word} {column}."
    return question, f"SELECT * FROM {table.name} ORDER BY {column} {order} LIMIT {count};"


def _count_per(random: Random, table: Table) -> tuple[str, str]:
    column = random.choice(tuple(table.texts))
    return (
        f"How many {table.name} are there per {column}?",
        f"SELECT {column}, COUNT(*) FROM {table.name} GROUP BY {column};",
    )


_QUESTIONS: tuple[Callable[[Random, Table], tuple[str, str]], ...] = (
    _count, _count_where, _aggregate, _aggregate_where, _list_column, _compare, _top, _count_per,
)  # fmt: skip


def _make(random: Random, split: Split) -> Example:
    table = random.choice(_TABLES[split])
    question, query = random.choice(_QUESTIONS)(random, table)
    return Example(f"{table.name}({', '.join(table.columns)})\n{question}", query)


def _runs(schema: str, query: str) -> bool:
    """Whether SQLite accepts `query` on a table made from `schema`."""
    with sqlite3.connect(":memory:") as database:
        database.execute(f"CREATE TABLE {schema}")
        try:
            database.execute(query)
        except (sqlite3.Error, sqlite3.Warning):
            return False
    return True


def _score(example: Example, answer: str) -> dict[str, bool]:
    query = answer.strip()
    is_select = query.upper().startswith("SELECT")
    return {
        "runs": is_select and _runs(example.prompt.split("\n")[0], query),
        "exact": query == example.answer,
    }


SQL = Task(
    name="sql",
    make=_make,
    score=_score,
    instruction="Write one SQL query that answers the question about this table. Reply with the query only.\n\n",
)
