"""What a person looks at after a run: the report page."""

from palestra.view.report import write_report

__all__ = ["write_report"]
