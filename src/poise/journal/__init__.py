"""What a running training writes down."""

from poise.journal.journal import Journal
from poise.journal.prepared import Prepared, log_event, log_row

__all__ = ["Journal", "Prepared", "log_event", "log_row"]
