"""calibrated.py: is a method as often right as it is confident?"""

import pandas as pd

from featpipe.reporting.sections import Chart, Content, Section, axis, line, lines


class Calibration(Section):
    """Accuracy beside mean confidence."""

    name = "calibration"
    title = "Calibration"

    def content(self, data):
        """Return a sentence, a chart and a table of all methods with probabilities."""
        shown = [method for method in data.methods if method.has_probabilities]
        rows = [(m.title, m.row["accuracy"], m.confidence.mean()) for m in shown]
        drawn = [line(title, [x], [y], strong=True) for title, x, y in rows]
        x, y = axis("accuracy", format="percent"), axis("mean confidence", format="percent")
        chart = Chart("Accuracy and confidence", lines(x, y, drawn, dots=True))
        table = pd.DataFrame(rows, columns=["method", "accuracy", "confidence"])
        text = f"{len(shown)} of {len(data.methods)} methods give probabilities."
        return Content(text, [chart], {"calibration": table})
