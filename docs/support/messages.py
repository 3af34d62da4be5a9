"""All messages of the library, read from its source, so that users find theirs on the page."""

from __future__ import annotations

import ast
import html
import re
from collections.abc import Iterator
from pathlib import Path

import keras_freeze

HOME = Path(keras_freeze.__file__).parent
RAISED = {"FreezeError", "ScheduleError", "LayerMatchError", "CacheError", "error", "_refuse"}
WARNED = {"warn", "tell", "_once", "_decline"}
ASIDE = "NotCacheableError"
VARIES = "\N{HORIZONTAL ELLIPSIS}"  # replaces the part of a message that varies


def causes() -> str:
    """Returns all reasons why a cache steps aside, with their remedies, as a table."""
    lines = [f"<tr><td>{_shown(why)}</td><td>{_shown(how)}</td></tr>" for why, how in aside()]
    head = "<thead><tr><th>cause</th><th>remedy</th></tr></thead>"
    return f"<table>{head}<tbody>{''.join(lines)}</tbody></table>"


def listed(*rooms: str) -> str:
    """Returns all messages of some packages, as a list."""
    return f"<ul>{''.join(f'<li>{_shown(text)}</li>' for text in raised(*rooms))}</ul>"


def _shown(text: str) -> str:
    return re.sub("`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))


def aside() -> list[tuple[str, str]]:
    """Returns pairs of a reason why a cache steps aside, and its remedy."""
    found = [
        (_text(call.args[0], constants), _text(call.args[1], constants))
        for call, constants in _calls(HOME / "feature_cache", {ASIDE})
        if len(call.args) == 2
    ]
    return sorted(set(found))


def raised(*rooms: str) -> list[str]:
    """Returns the messages of errors and warnings of some packages."""
    texts = {
        _sentence(_text(call.args[0], constants))
        for room in rooms
        for call, constants in _calls(HOME / room, RAISED | WARNED)
        if call.args
    }
    return sorted(text for text in texts if len(text.replace(VARIES, "")) > 20)


def _sentence(text: str) -> str:
    """Returns a message without the received value and the closing hint."""
    text = re.sub(" Received: .*", "", text, flags=re.DOTALL)
    text = re.sub(rf"[.] {VARIES}$", ".", text)  # the received value, from a variable
    return text.replace(f".{VARIES}", ".").rstrip(".") + "."


def _calls(path: Path, names: set[str]) -> Iterator[tuple[ast.Call, dict[str, ast.expr]]]:
    """Yields calls of functions with these names, and the constants of the calling module."""
    for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        constants = _constants(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("keras_freeze."):
                source = HOME.parent.joinpath(*(node.module or "").split(".")).with_suffix(".py")
                if source.exists():
                    constants = _constants(ast.parse(source.read_text())) | constants
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and _name(node.func) in names:
                yield node, constants


def _constants(tree: ast.Module) -> dict[str, ast.expr]:
    plain = [node for node in tree.body if isinstance(node, ast.Assign)]
    return {
        target.id: node.value
        for node in plain
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _text(node: ast.expr, constants: dict[str, ast.expr]) -> str:
    """Returns the text of a message."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.Name) and node.id in constants:
        return _text(constants[node.id], {})
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left, constants) + _text(node.right, constants)
    if isinstance(node, ast.JoinedStr):
        parts = [_text(part, constants) for part in node.values]
        return re.sub(f"{VARIES}+", VARIES, "".join(parts))
    if isinstance(node, ast.IfExp):
        return f"{_text(node.body, constants)}; or {_text(node.orelse, constants)}"
    if isinstance(node, ast.FormattedValue):
        return _text(node.value, constants) if isinstance(node.value, ast.Name) else VARIES
    return VARIES
