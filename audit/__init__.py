"""Questions to the logs: label join, rebuild of what a model saw. The home of DuckDB."""
