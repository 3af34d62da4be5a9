"""A figure that notebooks show."""

from __future__ import annotations

import io

from matplotlib.figure import Figure


class Picture(Figure):
    """A figure that a notebook shows at the end of a cell, `%matplotlib inline` or not."""

    def _repr_png_(self) -> bytes:
        """What IPython asks for if no backend of matplotlib has told it how to show figures."""
        png = io.BytesIO()
        self.savefig(png, format="png", bbox_inches="tight")
        return png.getvalue()
