"""Rows at rest: the row store over Redis (or Valkey), and a double in memory that behaves alike."""
