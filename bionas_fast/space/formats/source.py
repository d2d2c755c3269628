"""Constructor calls such as ``Genotype(...)`` in any text: found, parsed and read as plain values, never evaluated."""

from __future__ import annotations

import ast
import re
import warnings
from dataclasses import dataclass, replace
from typing import Any

from bionas_fast.errors import InputError, shown

#: The forms of a genotype that can be read, for messages.
FORMS = (
    "JSON ({\"normal\": …}), the text Genotype(normal=[('sep_conv_3x3', 0), …], …) "
    "or a NAS-Bench-201 string (|nor_conv_3x3~0|+|…|)"
)
#: The largest text that is searched, and the largest call that is parsed, in characters.
LARGEST_TEXT, LARGEST_CALL = 2**20, 2**16
_DEEPEST = 32

# A string, a comment, or a bracket.
_TOKEN = re.compile(r"'(?:[^'\\\n]|\\.)*'|\"(?:[^\"\\\n]|\\.)*\"|#[^\n]*|[()\[\]{}]")
_CALL = re.compile(r"(?<!class )\b(Genotype|Structure)\(")
_NAME = re.compile(r"([A-Za-z_]\w*)['\"]?\s*[=:]\s*['\"]?(?:\w+\.)*\Z")

#: Functions whose only argument is the value: numbers and strings of NumPy, arrays of plain values.
_TRANSPARENT = re.compile(r"list|tuple|(as)?array|tensor|str_?|u?int(8|16|32|64|p|_)?|long(long)?")


@dataclass(frozen=True)
class Call:
    """A call found in a text.

    Attributes:
        function: its name, ``Genotype`` or ``Structure``.
        source: the text of the call.
        name: the variable to which the text assigns it; empty if there is none.
        line, column: of the first character, from 1.
    """

    function: str
    source: str
    name: str
    line: int
    column: int

    def place(self, node: ast.AST | SyntaxError | None = None) -> str:
        """Return the line and the column of a part of the call, by default of the call."""
        line = getattr(node, "lineno", None) or 1
        offset = getattr(node, "offset", None) or getattr(node, "col_offset", 0) + 1
        return f"genotype: line {self.line + line - 1}, column {offset + (self.column - 1 if line == 1 else 0)}"

    def _part(self, node: ast.expr) -> str:
        return shown(ast.get_source_segment(self.source, node) or "", 60)

    def parse(self) -> ast.Call:
        """Parse the call.

        Raises:
            InputError: not an expression of Python.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of escape sequences
                tree = ast.parse(self.source, mode="eval")
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            where = self.place(error if isinstance(error, SyntaxError) else None)
            raise InputError(f"{where}: not the text of a {self.function}(...)") from None
        assert isinstance(tree.body, ast.Call)
        return tree.body

    def value(self, node: ast.expr, where: str) -> Any:
        """Read an argument: numbers, strings, lists, tuples, ranges, and what NumPy prints around them.

        Raises:
            InputError: another expression.
        """
        match node:
            case ast.Constant(value=str() | int() as value):
                return value
            case ast.List(elts=elements) | ast.Tuple(elts=elements):
                return [self.value(element, where) for element in elements]
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=[argument, *rest]):
                if name == "range" and not node.keywords and len(rest) < 3:
                    bounds = [self.value(bound, where) for bound in node.args]
                    if all(type(bound) is int and 0 <= bound < 1000 for bound in bounds) and bounds[2:] != [0]:
                        return list(range(*bounds))
                elif _TRANSPARENT.fullmatch(name) and not rest:  # keywords give a dtype
                    return self.value(argument, where)
        raise InputError(f"{self.place(node)}: {where}: expected plain values, got {self._part(node)}")


def expect_size(text: str) -> None:
    """Raise an InputError for a text that is too long for a genotype."""
    if len(text) > LARGEST_TEXT:
        raise InputError(f"genotype: expected at most {LARGEST_TEXT} characters, got {len(text)}")


def calls(text: str) -> list[Call]:
    """Find the calls of ``Genotype`` and ``Structure`` in a text such as a log or a Python file.

    Raises:
        InputError: a text or a call that is too long, too deep, or cut off; the message has line and column.
    """
    expect_size(text)
    text = re.sub(r"\\(['\"])", r"\1", text)  # the text of a quoted string
    found: list[Call] = []
    position, line = 0, 1
    while match := _CALL.search(text, position):
        start = match.start()
        line += text.count("\n", position, start)
        line_start = text.rfind("\n", 0, start) + 1
        name = _NAME.search(text[max(line_start, start - 200) : start])
        call = Call(match[1], match[0], name[1] if name else "", line, start - line_start + 1)
        position = _end(text, match.end(), call)
        found.append(replace(call, source=text[start:position]))
        line += found[-1].source.count("\n")
    return found


def _end(text: str, start: int, call: Call) -> int:
    """Return the position after the bracket that closes a call whose arguments begin at ``start``."""
    depth = 1
    for token in _TOKEN.finditer(text, start, start + LARGEST_CALL):
        if token[0] in "([{":
            depth += 1
        elif token[0] in ")]}":
            depth -= 1
        if depth == 0:
            return token.end()
        if depth > _DEEPEST:
            raise InputError(f"{call.place()}: {call.function}(...) is nested too deeply")
    raise InputError(f"{call.place()}: {call.function}( is not closed; not the text of a {call.function}(...)")


def refuse(text: str) -> InputError:
    """Create the error for a text in which no genotype is found; it names the forms that can be read."""
    stripped = text.lstrip()
    before = text[: len(text) - len(stripped)]
    line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
    got = shown(stripped[:60], 60) if stripped else "an empty text"
    return InputError(f"genotype: line {line}, column {column}: expected {FORMS}; got {got}")
