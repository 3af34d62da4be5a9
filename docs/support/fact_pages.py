"""The facts: each script, and its output on each backend."""

from __future__ import annotations

import json

from shown import DATA

BACKENDS = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}


def fact(name: str) -> str:
    """Returns a script in a collapsed section and its output on each backend, as Markdown."""
    source = (DATA.parent / "facts" / f"{name}.py").read_text()
    parts = []
    for backend, title in BACKENDS.items():
        printed = json.loads((DATA / f"facts_{backend}.json").read_text())["printed"][name]
        parts.append(f"**{title}**\n\n```text\n{printed.rstrip()}\n```\n")
    code = "\n".join(f"    {line}".rstrip() for line in source.splitlines())
    return "\n".join(parts) + f'\n??? example "The script"\n    ```python\n{code}\n    ```\n'


def versions() -> str:
    """Returns the versions of Keras that ran the scripts."""
    found = {json.loads((DATA / f"facts_{each}.json").read_text())["keras"] for each in BACKENDS}
    return ", ".join(sorted(found))
