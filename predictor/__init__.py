"""The ranking service: networks, packages, the cascade, hot swap, HTTP, the rank-log spool."""
