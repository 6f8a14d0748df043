"""The one import of kafka-python: its message schemas are read by a call that Python deprecates."""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="(read|open)_text is deprecated")
    from kafka import KafkaAdminClient, KafkaProducer
    from kafka.errors import KafkaError, MessageSizeTooLargeError

__all__ = ["KafkaAdminClient", "KafkaError", "KafkaProducer", "MessageSizeTooLargeError"]
