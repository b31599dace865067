"""Can the policy work in an office with several databases? Mail, calendar, tasks and customers, behind 24 tools."""

import copy
from typing import Any

import numpy as np

from envs.messages import Reply, ToolCall
from envs.text_env import Split, choose_level, draw_in_split
from envs.tool_use.workplace_data import CITIES, DAYS, FOLDERS, HOURS, PEOPLE, STATUSES, Database, draw_day
from rewards.state import state_reached

LEVELS = {1: 1, 2: 2, 3: 3}
"""Number of errands at once."""


class Workplace:
    """Run errands in an office with four databases (mail, calendar, tasks, customers) and 24 tools.

    Ids must be looked up. The final state of all databases is compared with the state after the gold calls.

    Options: `level` is the number of errands at once, 1 to 3.
    Reward parts: `state` 1 if every record of every database is right.
    """

    max_turns = 10

    def reset(self, rng: np.random.Generator, split: Split, level: int = 1) -> str:
        num = choose_level(level, LEVELS)
        self._data, errands = draw_in_split(
            rng, split, lambda rng: draw_day(rng, num), lambda day: " ".join(errand.text for errand in day[1])
        )
        self.key = " ".join(errand.text for errand in errands)
        self._gold = [call for errand in errands for call in errand.calls]
        self._num_done = 0
        self._wanted = self._after_gold()
        return f"{self.key} Say so when all of it is done."

    def score(self, reply: Reply) -> dict[str, float]:
        return {"state": state_reached(self._data, self._wanted)}

    def gold_reply(self) -> Reply:
        if self._num_done == len(self._gold):
            return Reply("Finished.")
        return Reply("", "", (self._gold[self._num_done],))

    def _after_gold(self) -> Database:
        """The databases as the gold calls leave them."""
        reference = copy.deepcopy(self)
        for call in self._gold:
            getattr(reference, call.name)(**call.arguments)
        return reference._data

    def _note(self, tool: str, /, **arguments: Any) -> None:
        if self._num_done < len(self._gold) and self._gold[self._num_done] == ToolCall(tool, arguments):
            self._num_done += 1

    def _record(self, database: str, key: str) -> dict[str, Any]:
        if key not in self._data[database]:
            raise ValueError(f"{database} has no {key}")
        return self._data[database][key]

    def _listed(self, database: str, **wanted: Any) -> str:
        """The records that match, one per line; a text matches if the record's text contains it."""
        lines = [
            f"{key}: " + ", ".join(f"{name} {value}" for name, value in record.items())
            for key, record in self._data[database].items()
            if all(str(value).lower() in str(record[name]).lower() for name, value in wanted.items())
        ]
        return "\n".join(lines) or "nothing found"

    def _one_of(self, value: str, values: tuple[Any, ...]) -> Any:
        for allowed in values:
            if str(value).lower() == str(allowed):
                return allowed
        raise ValueError(f"must be one of {', '.join(map(str, values))}, got {value}")

    def _added(self, database: str, prefix: str, record: dict[str, Any]) -> str:
        key = f"{prefix}{1 + max(int(key[1:]) for key in [*self._data[database], prefix + '999'])}"
        self._data[database][key] = record
        return key

    # mail

    def list_mails(self, folder: str) -> str:
        """List the mails of a folder"""
        return self._listed("mail", folder=self._one_of(folder, FOLDERS))

    def search_mails(self, text: str) -> str:
        """Find mails by subject"""
        self._note("search_mails", text=text)
        return self._listed("mail", subject=text)

    def mails_from(self, sender: str) -> str:
        """Find mails by sender"""
        return self._listed("mail", sender=sender)

    def read_mail(self, mail: str) -> str:
        """Read a mail"""
        return self._record("mail", mail)["body"]

    def send_mail(self, to: str, subject: str, body: str) -> str:
        """Send a mail"""
        self._note("send_mail", to=to, subject=subject, body=body)
        record = {"sender": "me", "to": self._one_of(to, PEOPLE), "subject": subject.lower(), "body": body.lower()}
        return f"sent {self._added('mail', 'm', record | {'folder': 'sent'})}"

    def move_mail(self, mail: str, folder: str) -> str:
        """Move a mail to inbox, archive or urgent"""
        self._record("mail", mail)["folder"] = self._one_of(folder, FOLDERS)
        self._note("move_mail", mail=mail, folder=folder)
        return "moved"

    def delete_mail(self, mail: str) -> str:
        """Delete a mail"""
        self._record("mail", mail)
        del self._data["mail"][mail]
        return "deleted"

    # calendar

    def list_events(self, day: str) -> str:
        """List the events of a day"""
        return self._listed("calendar", day=self._one_of(day, DAYS))

    def find_event(self, title: str) -> str:
        """Find events by title"""
        self._note("find_event", title=title)
        return self._listed("calendar", title=title)

    def free_hours(self, day: str) -> str:
        """Hours of a day without an event"""
        taken = {event["hour"] for event in self._data["calendar"].values() if event["day"] == self._one_of(day, DAYS)}
        return ", ".join(str(hour) for hour in HOURS if hour not in taken)

    def add_event(self, title: str, day: str, hour: int) -> str:
        """Add an event"""
        record = {"title": title.lower(), "day": self._one_of(day, DAYS), "hour": self._one_of(str(hour), HOURS)}
        return f"added {self._added('calendar', 'e', record)}"

    def move_event(self, event: str, day: str, hour: int) -> str:
        """Move an event"""
        when = {"day": self._one_of(day, DAYS), "hour": self._one_of(str(hour), HOURS)}
        self._record("calendar", event).update(when)
        self._note("move_event", event=event, day=day, hour=hour)
        return "moved"

    def delete_event(self, event: str) -> str:
        """Cancel an event"""
        self._record("calendar", event)
        del self._data["calendar"][event]
        self._note("delete_event", event=event)
        return "deleted"

    # tasks

    def list_tasks(self, status: str) -> str:
        """List open or closed tasks"""
        return self._listed("tasks", status=status)

    def find_task(self, title: str) -> str:
        """Find tasks by title"""
        self._note("find_task", title=title)
        return self._listed("tasks", title=title)

    def tasks_of(self, owner: str) -> str:
        """Find tasks by owner"""
        return self._listed("tasks", owner=owner)

    def add_task(self, title: str, owner: str) -> str:
        """Add a task"""
        record = {"title": title.lower(), "owner": self._one_of(owner, PEOPLE), "status": "open"}
        return f"added {self._added('tasks', 't', record)}"

    def assign_task(self, task: str, owner: str) -> str:
        """Give a task to somebody"""
        self._record("tasks", task)["owner"] = self._one_of(owner, PEOPLE)
        self._note("assign_task", task=task, owner=owner)
        return "assigned"

    def close_task(self, task: str) -> str:
        """Close a task"""
        self._record("tasks", task)["status"] = "closed"
        self._note("close_task", task=task)
        return "closed"

    # customers

    def list_customers(self, city: str) -> str:
        """List the customers of a city"""
        return self._listed("customers", city=city)

    def find_customer(self, name: str) -> str:
        """Find customers by name"""
        self._note("find_customer", name=name)
        return self._listed("customers", name=name)

    def add_customer(self, name: str, city: str) -> str:
        """Add a customer"""
        record = {"name": name.lower(), "city": self._one_of(city, CITIES), "status": "lead"}
        return f"added {self._added('customers', 'c', record)}"

    def move_customer(self, customer: str, city: str) -> str:
        """Change a customer's city"""
        self._record("customers", customer)["city"] = self._one_of(city, CITIES)
        self._note("move_customer", customer=customer, city=city)
        return "moved"

    def mark_customer(self, customer: str, status: str) -> str:
        """Mark a customer as lead, active or lost"""
        self._record("customers", customer)["status"] = self._one_of(status, STATUSES)
        self._note("mark_customer", customer=customer, status=status)
        return "marked"
