"""Streams: actions into rows, topics into archives, the spool into its topic, and replays."""
