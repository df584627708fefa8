"""A page about one run, or several side by side: `write_report`."""

from atlas.report.report_page import REPORT, report, write_report

__all__ = ["REPORT", "report", "write_report"]
