"""Pages for people: one self-contained HTML file about a subspace."""

from pipeline.report.page import write_report

__all__ = ["write_report"]
