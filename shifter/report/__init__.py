"""The report of a run, as one HTML file that needs nothing else (extra ``report``)."""

from shifter.report.html import render

__all__ = ["render"]
