"""A reward for arithmetic: the last number of the output is the answer, or the value of the prompt's expression."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from fractions import Fraction
from operator import add, mul, neg, pos, sub, truediv
from typing import Any

# In "10-20", the minus is not a sign, and the digits of a name such as H2 are no number.
_NUMBER = re.compile(r"(?<![\w.])(?:(?<!\d)-)?(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,3}(?!\d))?(?:/0*[1-9]\d*)?")
# Part of a line that may be an expression: not the digits of a name, and with signs that have no value here.
_CANDIDATE = re.compile(r"(?<![A-Za-z0-9_.+*/^%-])[-+(\d][\d. \t()+*/^%-]*")
_BULLET = re.compile(r"^[-+]+[ \t]+")
_LABEL = re.compile(r"[A-Za-z]\w+[ \t]*$")  # a dash after it is not a sign
_OPERATION = re.compile(r"\d[ \t.)]*[-+*/^%]")
# What makes an expression part of a larger one, which has another value: signs, names of variables and functions, and
# operators in words.
_WORDS = r"(?:x|times|plus|minus|over|mod|modulo|of|percent of|divided by|multiplied by|to the power of)"
_BEFORE = re.compile(rf"(?:[A-Za-z\d_|√²³·!]\(?|[\d%)!²³][ \t]*{_WORDS}[ \t]*|[√·][ \t]*|\d,)$", re.IGNORECASE)
_AFTER = re.compile(rf"^(?:[A-Za-z|√²³·!]|[ \t]*[²³!·√]|[ \t]*{_WORDS}[ \t]*[\d(√])", re.IGNORECASE)
_FACTOR = re.compile(r"(?:(?<![^\W\d_])[^\W\d_]|[)|²³!])[ \t]*$")  # a variable, or another factor, before an operator
_TRAILING = " \t.(+-*/"  # what may follow an expression in a sentence
_SIGNS = str.maketrans("×÷−", "*/-")
_LEADING_ZEROS = re.compile(r"(?<![\d.])0+(?=\d)")
_OPERATORS: dict[type, Any] = {
    ast.Add: add, ast.Sub: sub, ast.Mult: mul, ast.Div: truediv, ast.USub: neg, ast.UAdd: pos,
}  # fmt: skip
_MAX_CHARACTERS = 1000  # of an expression or a number


def arithmetic(prompt: str, output: str, row: Mapping[str, Any]) -> float:
    """1 if the last number in the output is the row's `answer` or, without one, the value of the prompt's last
    expression of + - * / and parentheses. Commas between digits are ignored.
    """
    numbers = _NUMBER.findall(plain(output))
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
    text = last_expression(_LEADING_ZEROS.sub("", plain(row["prompt"][-_MAX_CHARACTERS:])))  # Python has no number 07
    if not text:
        raise ValueError("has neither an 'answer' nor an expression such as 12+30 in its prompt; add an answer")
    try:
        result = value(ast.parse(text, mode="eval").body, text)
    except (SyntaxError, ZeroDivisionError, KeyError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError(f"has the expression {text!r:.80}, which has no value; correct it or add an answer") from error
    if pow(10, result.denominator.bit_length(), result.denominator):  # it has other prime factors than 2 and 5
        raise ValueError(f"has the expression {text!r:.80}, whose value no decimal number equals; add an answer")
    return result


def last_expression(prompt: str) -> str:
    """The last expression in a prompt, without a bullet before it and operators after it; otherwise empty. ValueError
    if it is part of a larger one.
    """
    expression = before = after = ""
    for candidate in _CANDIDATE.finditer(prompt):
        line, text = prompt[: candidate.start()].rpartition("\n")[2], candidate[0]
        if not line.strip() or _LABEL.search(line):
            text = _BULLET.sub("", text)
        text = text.rstrip(_TRAILING)
        while text.endswith(")") and text.count(")") > text.count("("):
            text = text[:-1].rstrip(_TRAILING)
            opened = line.rfind("(")
            line = line[: opened + 1] if opened >= 0 else line
        while text.startswith("(") and text.count("(") > text.count(")"):
            text = text[1:].lstrip()
        if _OPERATION.search(text):
            rest = prompt[candidate.start() + candidate[0].rfind(text[-1]) + 1 :]
            expression, before, after = text, line, rest.partition("\n")[0]
    is_part = _BEFORE.search(before) or _AFTER.search(after)
    if expression and (is_part or (expression[0] in "+-" and _FACTOR.search(before))):
        raise ValueError(f"has the expression {expression!r:.80} within a larger one; add an answer")
    return expression


def plain(text: str) -> str:
    """The text with the signs that Python has, and without commas between digits."""
    return re.sub(r"(?<=\d),(?=\d{3})", "", text.translate(_SIGNS))


def value(node: ast.AST, text: str) -> Fraction:
    """The exact value of a parsed expression in a text. KeyError or TypeError for anything but numbers and their
    operators.
    """
    if isinstance(node, ast.BinOp):
        return _OPERATORS[type(node.op)](value(node.left, text), value(node.right, text))
    if isinstance(node, ast.UnaryOp):
        return _OPERATORS[type(node.op)](value(node.operand, text))
    if not isinstance(node, ast.Constant):
        raise TypeError(type(node).__name__)
    return Fraction(ast.get_source_segment(text, node) or "")
