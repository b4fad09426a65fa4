"""Beginnings of texts that repeat themselves, as applications make them: records, edited code, quotations, logs."""

from typing import Final

_FUNCTION: Final = """def add_order(database, order):
    if order.total < 0:
        raise ValueError(f"the total of order {order.id} is negative")
    database.execute("insert into orders values (?, ?)", (order.id, order.total))
    database.commit()
    return order.id
"""

_NOTICE: Final = (
    "The office is closed from the 24th of December to the 2nd of January. Parcels that arrive in these days are kept"
    " by the caretaker, whose flat is on the ground floor, and can be fetched from him in the evening. The heating is"
    " turned down, so please shut all windows and water the plants before you leave."
)

_RECORDS: Final = "\n".join(
    f'{{"id": {number}, "kind": "order", "customer": "C-{number}", "status": "open", "currency": "EUR", "lines": []}},'
    for number in range(101, 107)
)

_LOG: Final = "\n".join(
    f"2026-11-21 10:00:{second:02} INFO gateway.relay request finished status=200 model=base tokens=128 team=red"
    for second in range(6)
)

REPEATING_TEXTS: Final = (
    f"# Version 1\n{_FUNCTION}\n# Version 2, with a longer comment and otherwise the same\n{_FUNCTION[:40]}",
    f"Notice:\n{_NOTICE}\n\nThe same notice, word by word, for the second door:\n{_NOTICE[:60]}",
    f"[\n{_RECORDS}\n",
    f"{_LOG}\n",
)
"""Each is to be continued as text, not answered."""
