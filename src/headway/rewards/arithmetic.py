"""A reward for arithmetic: the last number of the output is the answer, or the value of the prompt's expression."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from fractions import Fraction
from operator import add, mul, neg, pos, sub, truediv
from typing import Any

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_EXPRESSION = re.compile(r"[-+(]*\s*\d[\d\s.()]*(?:[-+*/][\d\s.()+*/-]*)+")
_LEADING_ZEROS = re.compile(r"(?<![\d.])0+(?=\d)")
_OPERATORS: dict[type, Any] = {
    ast.Add: add, ast.Sub: sub, ast.Mult: mul, ast.Div: truediv, ast.USub: neg, ast.UAdd: pos,
}  # fmt: skip
_MAX_CHARACTERS = 1000  # of an expression or a number


def arithmetic(prompt: str, output: str, row: Mapping[str, Any]) -> float:
    """1 if the last number in the output is the row's `answer` or, without one, the value of the prompt's last
    expression of + - * / and parentheses. Commas between digits are ignored.
    """
    numbers = _NUMBER.findall(re.sub(r"(?<=\d),(?=\d{3})", "", output))
    if not numbers or len(numbers[-1]) > _MAX_CHARACTERS:
        return 0.0
    return float(Fraction(numbers[-1]) == target(row))


def check_problem(row: Mapping[str, Any]) -> None:
    """Raise ValueError for a row without a number as its answer and without an expression in its prompt."""
    target(row)


def target(row: Mapping[str, Any]) -> Fraction:
    """The correct result of a row. Raises ValueError for a row without one."""
    answer = row.get("answer")
    if answer is not None:
        if isinstance(answer, bool) or not _NUMBER.fullmatch(str(answer).strip()[:_MAX_CHARACTERS]):
            raise ValueError(f"has the answer {answer!r:.80}, which is not a number; correct it")
        return Fraction(str(answer).strip())
    prompt = _LEADING_ZEROS.sub("", row["prompt"][-_MAX_CHARACTERS:])  # Python has no number 07
    expressions = _EXPRESSION.findall(prompt)
    if not expressions:
        raise ValueError("has neither an 'answer' nor an expression such as 12+30 in its prompt; add an answer")
    try:
        return value(ast.parse(expressions[-1].strip(), mode="eval").body)
    except (SyntaxError, ZeroDivisionError, KeyError, TypeError) as error:
        text = expressions[-1].strip()
        raise ValueError(f"has the expression {text!r:.80}, which has no value; correct it or add an answer") from error


def value(node: ast.AST) -> Fraction:
    """The exact value of a parsed expression. KeyError or TypeError for anything but numbers and their operators."""
    if isinstance(node, ast.BinOp):
        return _OPERATORS[type(node.op)](value(node.left), value(node.right))
    if isinstance(node, ast.UnaryOp):
        return _OPERATORS[type(node.op)](value(node.operand))
    if not isinstance(node, ast.Constant):
        raise TypeError(type(node).__name__)
    return Fraction(str(node.value))
