"""Messages between the members of a workspace."""

from __future__ import annotations

import json
from typing import Any, ClassVar

from agentgym.tools import tool
from agentgym_envs.bfcl.apis.base import Api

_SIGNED_OUT = "nobody is logged in"


class MessageAPI(Api):
    """The `inbox` is a list of messages, each as `{receiver id: text}`, the newest last."""

    seed = 200191
    defaults: ClassVar[dict[str, Any]] = {
        "generated_ids": [],
        "user_count": 4,
        "user_map": {"Alice": "USR001", "Bob": "USR002", "Catherine": "USR003", "Daniel": "USR004"},
        "inbox": [
            {"USR002": "My name is Alice. I want to connect."},
            {"USR003": "Could you upload the file?"},
            {"USR004": "Could you upload the file?"},
        ],
        "message_count": 3,
        "current_user": None,
    }

    @tool
    def list_users(self) -> Any:
        """List the names of all members."""
        return {"user_list": list(self.state["user_map"])}

    @tool
    def get_user_id(self, user: str) -> Any:
        """Find a member's id by name."""
        if user not in self.state["user_map"]:
            raise ValueError(f"there is no member {user!r}")
        return {"user_id": self.state["user_map"][user]}

    @tool
    def message_login(self, user_id: str) -> Any:
        """Log in as the member with this id."""
        self._known(user_id)
        self.state["current_user"] = user_id
        return {"login_status": True, "message": f"{user_id} is logged in."}

    @tool
    def message_get_login_status(self) -> Any:
        """Tell whether somebody is logged in to the messages."""
        return {"login_status": bool(self.state["current_user"])}

    @tool
    def send_message(self, receiver_id: str, message: str) -> Any:
        """Send a message to a member, by id."""
        self.require("current_user", _SIGNED_OUT)
        self._known(receiver_id)
        while (number := self.random.randint(10000, 99999)) in self.state["generated_ids"]:
            pass
        self.state["generated_ids"].append(number)
        self.state["inbox"].append({receiver_id: message})
        self.state["message_count"] += 1
        return {"sent_status": True, "message_id": number, "message": f"The message to {receiver_id} is sent."}

    @tool
    def delete_message(self, receiver_id: str) -> Any:
        """Delete the latest message to a member, by id."""
        self.require("current_user", _SIGNED_OUT)
        inbox = self.state["inbox"]
        place = next((at for at in reversed(range(len(inbox))) if receiver_id in inbox[at]), None)
        if place is None:
            raise ValueError(f"there is no message to {receiver_id!r}")
        del inbox[place]
        return {"deleted_status": True, "receiver_id": receiver_id, "message": "The latest message is deleted."}

    @tool
    def view_messages_sent(self) -> Any:
        """Show all messages by the id of their receiver."""
        self.require("current_user", _SIGNED_OUT)
        found: dict[str, list[Any]] = {}
        for receiver, text in self._messages():
            found.setdefault(receiver, []).append(text)
        return {"messages": found}

    @tool
    def add_contact(self, user_name: str) -> Any:
        """Add a member by name."""
        if user_name in self.state["user_map"]:
            raise ValueError(f"there is a member {user_name!r} already")
        user_id = f"USR{self.state['user_count'] + 1:03d}"
        if user_id in self.state["user_map"].values():
            raise ValueError(f"the id {user_id} is taken already")
        self.state["user_count"] += 1
        self.state["user_map"][user_name] = user_id
        return {"added_status": True, "user_id": user_id, "message": f"{user_name} is added."}

    @tool
    def search_messages(self, keyword: str) -> Any:
        """Find the messages that contain a word, whatever its case."""
        self.require("current_user", _SIGNED_OUT)
        found = [(receiver, text) for receiver, text in self._messages() if keyword.lower() in _text(text).lower()]
        return {"results": [{"receiver_id": receiver, "message": text} for receiver, text in found]}

    @tool
    def get_message_stats(self) -> Any:
        """Tell how many messages there are, and to how many members."""
        self.require("current_user", _SIGNED_OUT)
        receivers = [receiver for receiver, _ in self._messages()]
        return {"stats": {"received_count": len(receivers), "total_contacts": len(set(receivers))}}

    def _known(self, user_id: str) -> None:
        if user_id not in self.state["user_map"].values():
            raise ValueError(f"there is no member with the id {user_id!r}")

    def _messages(self) -> list[tuple[str, Any]]:
        return [pair for one in self.state["inbox"] for pair in list(one.items())[:1]]


def _text(message: Any) -> str:
    return message if isinstance(message, str) else json.dumps(message)
