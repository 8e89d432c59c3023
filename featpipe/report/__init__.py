"""Results as one self-contained HTML page: a function of results, which never trains."""

from __future__ import annotations

from featpipe.report.build import build_report, run_report
from featpipe.report.index import write_index
from featpipe.report.options import ReportOptions

__all__ = ["ReportOptions", "build_report", "run_report", "write_index"]
