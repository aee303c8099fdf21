"""A register of people, and a Model Context Protocol server of it that needs nothing but the standard library."""

import hashlib
import json
import sys

NAMES = (
    "Adriel", "Belisa", "Corvin", "Danika", "Eskild", "Fiorel", "Gudrun", "Halvor", "Idunne", "Jorvik", "Kalina",
    "Leocad", "Mirena", "Norwin", "Ottoli", "Perdix", "Quirin", "Roswit", "Sigurd", "Tamsin", "Ulrike", "Viggor",
    "Wendel", "Ysolde",
)  # fmt: skip
TOOL = {
    "name": "look_up",
    "description": "Find a person.",
    "inputSchema": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
}


def code_of(name: str) -> str:
    """Return a person's code."""
    return hashlib.sha256(f"register {name}".encode()).hexdigest()[:10]


def friend_of(name: str) -> str:
    """Return a person's friend."""
    return NAMES[(5 * NAMES.index(name) + 7) % len(NAMES)]


def look_up(name: str) -> tuple[str, bool]:
    """Return what the register says, and whether it knows that person."""
    if name not in NAMES:
        return "nobody of that name", False
    return f"code {code_of(name)}, friend {friend_of(name)}", True


def answer(method: str, params: dict[str, object]) -> dict[str, object]:
    """Return the answer's result or error."""
    match method:
        case "initialize":
            about = {"name": "register", "version": "1"}
            version = params["protocolVersion"]
            return {"result": {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": about}}
        case "tools/list":
            return {"result": {"tools": [TOOL]}}
        case "tools/call":
            given = params["arguments"]
            text, known = look_up(str(given.get("name")) if isinstance(given, dict) else "")
            return {"result": {"content": [{"type": "text", "text": text}], "isError": not known}}
    return {"error": {"code": -32601, "message": f"no such method: {method}"}}


if __name__ == "__main__":
    for line in sys.stdin:
        asked = json.loads(line)
        if "id" in asked:
            told = answer(asked["method"], asked.get("params", {}))
            sys.stdout.write(json.dumps({"jsonrpc": "2.0", "id": asked["id"], **told}) + "\n")
            sys.stdout.flush()
