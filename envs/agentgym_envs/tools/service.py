"""What the agents of tau-bench's domains share: a calculator, a notebook, and a human to hand over to."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import ClassVar

from agentgym.graders.sources import parse_expression
from agentgym.tools import tool
from agentgym_envs.tools.world import World

_OPERATORS: Mapping[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_LONGEST = 200


class ServiceWorld(World):
    """A customer service's world."""

    ends: ClassVar[frozenset[str]] = frozenset({"transfer_to_human_agents"})

    @tool
    def calculate(self, expression: str) -> str:
        """Calculate an expression of numbers, + - * / and parentheses."""
        return str(round(float(_value(expression)), 2))

    @tool
    def think(self, thought: str) -> str:  # noqa: ARG002 -- only the transcript keeps it
        """Write down a thought; nothing is looked up or changed."""
        return ""

    @tool
    def transfer_to_human_agents(self, summary: str) -> str:  # noqa: ARG002 -- only the transcript keeps it
        """Hand the customer over to a human, with a summary of the matter."""
        return "Transfer successful"


def _value(expression: str) -> float:
    """Return what an expression is worth; nothing in it is ever executed."""
    if len(expression) > _LONGEST:
        raise ValueError(f"wanted an expression of at most {_LONGEST} characters")
    try:
        return _of(parse_expression(expression))
    except (SyntaxError, ZeroDivisionError, OverflowError, RecursionError, MemoryError) as error:
        raise ValueError(f"the expression has no value: {type(error).__name__}") from error


def _of(node: ast.expr) -> float:
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_of(operand)
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _OPERATORS:
            return _OPERATORS[type(sign)](_of(left), _of(right))
    raise ValueError("wanted numbers, + - * / and parentheses only")
