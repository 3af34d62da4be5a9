"""Makes the pictures of the page "What you see": a terminal and a notebook.

    pip install rich jupyterlab playwright pillow      and tmux, Chromium
    KERAS_BACKEND=torch python docs/support/screenshots.py [--chromium /usr/bin/chromium]

tmux runs the Quickstart's own code, and rich draws the screen. The notebook runs in JupyterLab in
headless Chromium.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1]
ASSETS = DOCS / "assets"
WIDTH, HEIGHT = 96, 38  # characters
PORT = 8899
BACKENDS_WORDS = """document.querySelectorAll('[data-mime-type="application/vnd.jupyter.stderr"]')
    .forEach(words => words.closest('.jp-OutputArea-child').remove())"""  # removes backend logs

NOTEBOOK = [
    """import keras
from keras_freeze import (
    BottleneckCache, FreezeBase, GradualUnfreeze, Schedule, Stage, plot_history
)
from keras_freeze.demo import digits_transfer

base, (images, labels), test = digits_transfer()
head = [keras.layers.Flatten(), keras.layers.Dense(5, "softmax")]
model = keras.Sequential([keras.Input((8, 8, 1)), base, *head])
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
plan = Schedule([Stage(6, "block3_*", learning_rate=1e-4), Stage(9, "block2_*")])
plan.preview(model, epochs=12, steps_per_epoch=5, data=50)""",
    """callbacks = [FreezeBase("base"), GradualUnfreeze(plan), BottleneckCache()]
history = model.fit(images, labels, batch_size=10, validation_data=test, epochs=12,
                    callbacks=callbacks, verbose=2)""",
    "plot_history(history)",
]


def quickstart() -> str:
    """Returns the Quickstart's code, with Keras' own progress bar."""
    page = (DOCS / "quickstart.md").read_text()
    (code,) = re.findall(r'session="quick" result="text"\n(import keras\n.*?)```', page, re.DOTALL)
    prepare = f"import sys\nsys.path.insert(0, {str(DOCS / 'support')!r})\nimport offline\n"
    return prepare + "offline.prepare()\n" + code.replace("    verbose=2,\n", "")


def tmux(*arguments: str) -> str:
    """Runs a tmux command. Returns what it prints."""
    command = ["tmux", "-L", "keras_freeze", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def draw(screen: str, path: Path) -> None:
    """Draws the terminal's screen as an SVG without external fonts."""
    from rich.console import Console
    from rich.text import Text

    console = Console(record=True, width=WIDTH, file=io.StringIO())
    console.print(Text.from_ansi(screen.rstrip("\n")))
    text = console.export_svg(title="python train.py")
    path.write_text(re.sub(r"@font-face \{.*?\}\n", "", text, flags=re.DOTALL))


def terminal(folder: str) -> None:
    """Draws the first pass during the run, and the whole run."""
    Path(folder, "train.py").write_text(quickstart())
    tmux("new-session", "-d", "-x", str(WIDTH), "-y", str(HEIGHT), "-c", folder)
    tmux("set-option", "-g", "history-limit", "5000")
    clean = "clear; TF_CPP_MIN_LOG_LEVEL=3"
    tmux("send-keys", f"{clean} {sys.executable} train.py 2>/dev/null; echo done", "Enter")
    while not re.search(r"Epoch 1/8\n(.*\n)*[1-5]/6 .*step", tmux("capture-pane", "-p")):
        time.sleep(0.02)
    draw(tmux("capture-pane", "-ep"), ASSETS / "terminal-first-pass.svg")
    while "\ndone" not in tmux("capture-pane", "-p"):
        time.sleep(0.5)
    screen = tmux("capture-pane", "-ep", "-S", "-200")
    draw(screen[: screen.index("\ndone")], ASSETS / "terminal.svg")
    tmux("kill-server")


def notebook(folder: str, chromium: str) -> None:
    """Runs all cells in JupyterLab and takes a screenshot."""
    from playwright.sync_api import sync_playwright

    cells: list[dict[str, Any]] = [
        {"cell_type": "code", "id": f"c{n}", "metadata": {}, "source": text}
        | {"execution_count": None, "outputs": []}
        for n, text in enumerate(NOTEBOOK)
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    book = {"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    Path(folder, "digits.ipynb").write_text(json.dumps(book))
    options = [f"--port={PORT}", "--no-browser", "--allow-root", "--IdentityProvider.token="]
    command = [sys.executable, "-m", "jupyterlab", *options]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL) as server:
        try:
            with sync_playwright() as player:
                browser = player.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
                page = browser.new_page(viewport={"width": 1180, "height": 2600})
                _open(page, f"http://localhost:{PORT}/doc/tree/digits.ipynb")
                page.get_by_text("| Idle").wait_for()
                page.get_by_role("menuitem", name="Run").first.click()
                page.get_by_text("Run All Cells", exact=True).click()
                page.wait_for_selector(".jp-OutputArea img", state="attached", timeout=90_000)
                page.get_by_text("No", exact=True).click()  # no news
                page.evaluate(BACKENDS_WORDS)
                page.wait_for_timeout(1000)
                picture = page.locator(".jp-Notebook").first.screenshot()
                crop(picture, ASSETS / "notebook.png")
        finally:
            server.terminate()


def crop(png: bytes, path: Path) -> None:
    """Saves a screenshot with few colors, without the empty part below."""
    from PIL import Image, ImageChops

    image = Image.open(io.BytesIO(png)).convert("RGB")
    _, _, _, bottom = ImageChops.invert(image).getbbox()
    image.crop((0, 0, image.width, bottom + 10)).quantize(64).save(path, optimize=True)


def _open(page: Any, address: str) -> None:
    for _ in range(60):
        try:
            page.goto(address)
            page.wait_for_selector(".jp-Cell", timeout=60_000)
            return
        except Exception:  # the server isn't up yet
            time.sleep(1)
    raise TimeoutError(address)


def main() -> None:
    """Makes the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--only", choices=["terminal", "notebook"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.only != "notebook":
            terminal(folder)
        if options.only != "terminal":
            notebook(folder, options.chromium)


if __name__ == "__main__":
    main()
