"""What is in the office of `envs.tool_use.workplace`, and which errands are there?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from envs.messages import ToolCall

PEOPLE = ("anna", "ben", "carla", "dan", "eva", "finn")
SUBJECTS = ("invoice", "offer", "holiday", "contract", "server", "lunch", "training", "budget")
FOLDERS = ("inbox", "archive", "urgent")
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday")
HOURS = (9, 10, 11, 13, 14, 15, 16)
MEETINGS = ("planning", "review", "interview", "demo", "retro", "call")
CHORES = ("write report", "fix printer", "order paper", "update website", "pay bills", "clean desk")
COMPANIES = ("acme", "bolt", "crest", "dune", "ember", "flint")
CITIES = ("berlin", "paris", "rome", "oslo")
STATUSES = ("lead", "active", "lost")
Record = dict[str, Any]
Database = dict[str, dict[str, Record]]


@dataclass(frozen=True, slots=True)
class Errand:
    """One thing to do: its text, and the calls that do it, starting with the look-up."""

    text: str
    calls: tuple[ToolCall, ...]


def draw_database(rng: np.random.Generator) -> Database:
    """Records by database and id; ids do not show what they stand for."""

    def ids(prefix: str, num: int) -> list[str]:
        return [f"{prefix}{number}" for number in rng.choice(900, size=num, replace=False) + 100]

    def pick(values: tuple[Any, ...]) -> Any:
        return values[int(rng.integers(len(values)))]

    slots = [(day, hour) for day in DAYS for hour in HOURS]
    times = [slots[int(place)] for place in rng.permutation(len(slots))[: len(MEETINGS)]]
    return {
        "mail": {
            key: {"sender": pick(PEOPLE), "subject": subject, "folder": pick(FOLDERS[:2]), "body": f"About {subject}."}
            for key, subject in zip(ids("m", len(SUBJECTS)), rng.permutation(SUBJECTS).tolist(), strict=True)
        },
        "calendar": {
            key: {"title": title, "day": day, "hour": hour}
            for key, title, (day, hour) in zip(ids("e", len(MEETINGS)), MEETINGS, times, strict=True)
        },
        "tasks": {
            key: {"title": title, "owner": pick(PEOPLE), "status": "open"}
            for key, title in zip(ids("t", len(CHORES)), CHORES, strict=True)
        },
        "customers": {
            key: {"name": name, "city": pick(CITIES), "status": pick(STATUSES)}
            for key, name in zip(ids("c", len(COMPANIES)), COMPANIES, strict=True)
        },
    }


def other(rng: np.random.Generator, values: Sequence[Any], than: Any) -> Any:
    """One of the values that is not `than`."""
    left = [value for value in values if value != than]
    return left[int(rng.integers(len(left)))]


def mail_errand(rng: np.random.Generator, key: str, mail: Record, _: Database) -> Errand:
    found = ToolCall("search_mails", {"text": mail["subject"]})
    if rng.integers(2):
        folder = other(rng, FOLDERS, mail["folder"])
        moved = ToolCall("move_mail", {"mail": key, "folder": folder})
        return Errand(f"Move the mail about {mail['subject']} to {folder}.", (found, moved))
    sent = {"to": mail["sender"], "subject": f"re {mail['subject']}", "body": "thanks"}
    text = f"Answer the sender of the mail about {mail['subject']}: subject re {mail['subject']}, body thanks."
    return Errand(text, (found, ToolCall("send_mail", sent)))


def event_errand(rng: np.random.Generator, key: str, event: Record, database: Database) -> Errand:
    found = ToolCall("find_event", {"title": event["title"]})
    if rng.integers(2):
        return Errand(f"Cancel the {event['title']}.", (found, ToolCall("delete_event", {"event": key})))
    taken = {(each["day"], each["hour"]) for each in database["calendar"].values()}
    day, hour = other(rng, [(day, hour) for day in DAYS for hour in HOURS if (day, hour) not in taken], None)
    moved = ToolCall("move_event", {"event": key, "day": day, "hour": hour})
    return Errand(f"Move the {event['title']} to {day} at {hour}.", (found, moved))


def task_errand(rng: np.random.Generator, key: str, task: Record, _: Database) -> Errand:
    found = ToolCall("find_task", {"title": task["title"]})
    if rng.integers(2):
        return Errand(f"Close the task {task['title']}.", (found, ToolCall("close_task", {"task": key})))
    owner = other(rng, PEOPLE, task["owner"])
    given = ToolCall("assign_task", {"task": key, "owner": owner})
    return Errand(f"Give the task {task['title']} to {owner}.", (found, given))


def customer_errand(rng: np.random.Generator, key: str, customer: Record, _: Database) -> Errand:
    found = ToolCall("find_customer", {"name": customer["name"]})
    if rng.integers(2):
        city = other(rng, CITIES, customer["city"])
        moved = ToolCall("move_customer", {"customer": key, "city": city})
        return Errand(f"{customer['name']} moved to {city}.", (found, moved))
    status = other(rng, STATUSES, customer["status"])
    marked = ToolCall("mark_customer", {"customer": key, "status": status})
    return Errand(f"Mark {customer['name']} as {status}.", (found, marked))


ERRANDS = {"mail": mail_errand, "calendar": event_errand, "tasks": task_errand, "customers": customer_errand}


def draw_day(rng: np.random.Generator, num: int) -> tuple[Database, tuple[Errand, ...]]:
    """The office's databases, and `num` errands, each on a different database."""
    database = draw_database(rng)
    errands = []
    for name in rng.permutation(list(ERRANDS))[:num]:
        records = database[str(name)]
        key = sorted(records)[int(rng.integers(len(records)))]
        errands.append(ERRANDS[str(name)](rng, key, records[key], database))
    return database, tuple(errands)
