"""The data of the three demo adapters: what goes in, what should come out, and how an answer is scored."""

from demo_tasks.polite import POLITE
from demo_tasks.sql import SQL
from demo_tasks.task import Example, Task
from demo_tasks.tickets import TICKETS

TASKS: dict[str, Task] = {task.name: task for task in (TICKETS, SQL, POLITE)}

__all__ = ["TASKS", "Example", "Task"]
