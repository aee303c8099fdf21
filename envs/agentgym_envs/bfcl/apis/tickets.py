"""Support tickets of a company."""

from __future__ import annotations

from typing import Any, ClassVar

from agentgym.tools import tool
from agentgym_envs.bfcl.apis.base import Api

_CHANGEABLE = ("title", "description", "status", "priority")


class TicketAPI(Api):
    """The queue is a list of tickets; new ones count on."""

    defaults: ClassVar[dict[str, Any]] = {"ticket_queue": [], "ticket_counter": 1, "current_user": None}

    @tool
    def ticket_login(self, username: str, password: str) -> Any:
        """Log in to the ticket system."""
        if not (username and password):
            return {"success": False}
        self.state["current_user"] = username
        return {"success": True}

    @tool
    def ticket_get_login_status(self) -> Any:
        """Tell whether somebody is logged in to the ticket system."""
        return {"login_status": bool(self.state["current_user"])}

    @tool
    def logout(self) -> Any:
        """Log out of the ticket system."""
        known = bool(self.state["current_user"])
        self.state["current_user"] = None
        return {"success": known}

    @tool
    def create_ticket(self, title: str, description: str = "", priority: int = 1) -> Any:
        """Create a ticket; its priority is from 1 to 5, the highest."""
        user = self.require("current_user", "nobody is logged in to the ticket system; log in first")
        if not 1 <= priority <= 5:
            raise ValueError(f"wanted a priority from 1 to 5, found {priority}")
        ticket = {"id": self.state["ticket_counter"], "title": title, "description": description, "status": "Open",
                  "priority": priority, "created_by": user}  # fmt: skip
        self.state["ticket_queue"].append(ticket)
        self.state["ticket_counter"] += 1
        return ticket

    @tool
    def get_ticket(self, ticket_id: int) -> Any:
        """Show a ticket."""
        return self._ticket(ticket_id)

    @tool
    def close_ticket(self, ticket_id: int) -> Any:
        """Close a ticket."""
        self._move(ticket_id, "Closed")
        return {"status": f"Ticket {ticket_id} is closed."}

    @tool
    def resolve_ticket(self, ticket_id: int, resolution: str) -> Any:
        """Resolve a ticket, and say how."""
        self._move(ticket_id, "Resolved")["resolution"] = resolution
        return {"status": f"Ticket {ticket_id} is resolved."}

    @tool
    def edit_ticket(self, ticket_id: int, updates: dict[str, str | int | None]) -> Any:
        """Change a ticket's title, description, status or priority: new values by these names."""
        unknown = sorted(updates.keys() - set(_CHANGEABLE))
        if unknown:
            raise ValueError(f"wanted new values of {', '.join(_CHANGEABLE)}; found {', '.join(unknown)}")
        self._ticket(ticket_id).update({name: one for name, one in updates.items() if one is not None})
        return {"status": f"Ticket {ticket_id} is changed."}

    @tool
    def get_user_tickets(self, status: str | None = None) -> Any:
        """Show the tickets that the present user created, all or those of one status."""
        user = self.require("current_user", "nobody is logged in to the ticket system; log in first")
        mine = [one for one in self.state["ticket_queue"] if one.get("created_by") == user]
        return [one for one in mine if status is None or str(one.get("status")).lower() == status.lower()]

    def _ticket(self, ticket_id: int) -> Any:
        found = next((one for one in self.state["ticket_queue"] if one.get("id") == ticket_id), None)
        if found is None:
            raise ValueError(f"there is no ticket {ticket_id}")
        return found

    def _move(self, ticket_id: int, status: str) -> Any:
        ticket = self._ticket(ticket_id)
        if ticket.get("status") == status:
            raise ValueError(f"the ticket {ticket_id} is {status.lower()} already")
        ticket["status"] = status
        return ticket
