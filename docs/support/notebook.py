"""Writes `examples/vgg19_codealong.ipynb` from the script of the same name, and runs it.

    pip install nbclient ipykernel
    KERAS_BACKEND=torch python docs/support/notebook.py

The notebook holds the outputs of the run. A test compares its cells with the script.
"""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPT, NOTEBOOK = EXAMPLES / "vgg19_codealong.py", EXAMPLES / "vgg19_codealong.ipynb"

CELLS = [  # "script": a section of the script
    (
        "markdown",
        """# The VGG19 codealong in one `fit`

Photos of two classes, VGG19 as a feature extractor, then fine-tuning from `block5_conv1` on, then
augmentation. Usually this takes three or more `compile` and `fit` calls. Here it takes one `fit`.

In a clone of [keras_freeze](../README.md), run

    pip install ".[tensorflow,plot]" scikit-learn

To use JAX or PyTorch, install it and set `KERAS_BACKEND`.""",
    ),
    ("script", "imports"),
    (
        "markdown",
        """## Data

Use a folder of photos with `train`, `validation` and `test`, each with a subfolder for each class.
Without the folder, or without a network to download ImageNet weights, the notebook uses handwritten
digits and pretrains a small base.""",
    ),
    ("script", "data"),
    (
        "code",
        """try:
    sets, base, fine_tune_from = load_vgg19("photos")
except Exception as error:  # Keras raises a bare Exception where a download fails
    print(f"A small base and digits, because: {error}")
    sets, base, fine_tune_from = load_small()
pretrained = base.get_weights()
for name, (images, labels) in zip(("train", "validation", "test"), sets, strict=True):
    print(f"{name:<11}", images.shape, "mean label", labels.mean().round(2))""",
    ),
    ("markdown", "## The model"),
    ("script", "model"),
    ("markdown", "## Feature extraction and fine-tuning: one fit"),
    ("script", "fit"),
    (
        "code",
        """model = build(base)
cache = BottleneckCache()
history, seconds = train(model, sets, fine_tune_from, cache)""",
    ),
    (
        "markdown",
        """### The freeze check

After `fit`, check which layers trained last.""",
    ),
    ("script", "check"),
    ("markdown", "The History shows it for each epoch:"),
    (
        "code",
        """print(history.history["stage"])
print(history.history["trainable_params"])""",
    ),
    ("markdown", "### Curves"),
    ("code", "plot_history(history)"),
    ("markdown", "### The test images"),
    ("code", "model.evaluate(*sets[2], verbose=0, return_dict=True)"),
    ("markdown", "## What the cache saves"),
    (
        "code",
        """base.set_weights(pretrained)
plain, plain_seconds = train(build(base), sets, fine_tune_from)
far = np.abs(np.subtract(history.history["loss"], plain.history["loss"])).max()
print(f"{seconds:.1f} s with the cache, {plain_seconds:.1f} s without")
print("largest difference of any epoch's loss:", far)
print("passes of the base:", cache.stats.base_passes, "with the cache,", EPOCHS, "without")""",
    ),
    (
        "markdown",
        """## Augmentation

Random augmentation inside the model makes new images in each epoch, which can't be cached.
Instead, make a few variants of each image before `fit`.""",
    ),
    ("script", "augmented"),
    (
        "code",
        """base.set_weights(pretrained)
model = build(base)
train(model, augmented(sets), fine_tune_from, BottleneckCache())
model.evaluate(*sets[2], verbose=0, return_dict=True)""",
    ),
]


def section(name: str) -> str:
    """Returns a section of the script, as shown on the page."""
    start, end = (rf"# --8<-- \[{side}:{name}\]\n" for side in ("start", "end"))
    found = re.search(rf"{start}(.*?)^ *{end}", SCRIPT.read_text(), re.DOTALL | re.MULTILINE)
    assert found is not None, name
    return textwrap.dedent(found[1]).strip()


def cells() -> list[dict[str, Any]]:
    """Returns the notebook's cells, without outputs."""
    made = []
    for number, (kind, text) in enumerate(CELLS):
        source = section(text) if kind == "script" else text
        cell: dict[str, Any] = {"id": f"cell-{number}", "metadata": {}, "source": source}
        if kind == "markdown":
            made.append({"cell_type": "markdown", **cell})
        else:
            made.append({"cell_type": "code", "execution_count": None, "outputs": [], **cell})
    return made


def main() -> None:
    """Writes the notebook, and runs it."""
    import nbclient
    import nbformat

    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    book = {"cells": cells(), "metadata": {"kernelspec": kernel}}
    run = nbformat.from_dict(book | {"nbformat": 4, "nbformat_minor": 5})
    nbclient.NotebookClient(run).execute()
    for cell in run.cells:
        cell.metadata = {}  # drops timestamps
        if cell.cell_type == "code":  # drops what a backend logs at import
            cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
    NOTEBOOK.write_text(json.dumps(run, indent=1) + "\n")


if __name__ == "__main__":
    main()
