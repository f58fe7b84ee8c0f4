"""Detectors: each reads one `Reading` per update (or one probe) and says what it saw."""
