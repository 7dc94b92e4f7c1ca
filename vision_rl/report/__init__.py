"""One page for runs and evaluations: `python -m vision_rl.report DIR [DIR ...] [--serve]`."""

from vision_rl.report.run import REPORT, write_report

__all__ = ["REPORT", "write_report"]
