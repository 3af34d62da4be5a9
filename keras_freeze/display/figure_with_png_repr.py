"""A matplotlib figure that notebooks show without `%matplotlib inline`."""

from __future__ import annotations

import io

from matplotlib.figure import Figure


class Picture(Figure):
    """A figure that a notebook shows as the last expression of a cell."""

    def _repr_png_(self) -> bytes:
        """Returns the PNG. IPython calls this if no matplotlib backend is active."""
        png = io.BytesIO()
        self.savefig(png, format="png", bbox_inches="tight")
        return png.getvalue()
