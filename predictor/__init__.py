"""The ranking service: networks, model packages, the cascade, hot swap, HTTP, the rank-log spool."""
