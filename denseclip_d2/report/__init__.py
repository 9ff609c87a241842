from .page import report_training, write_report

__all__ = ["report_training", "write_report"]
