"""Which id a topic has, asked in few bytes: the same answers as kafka-python's client gives."""

from __future__ import annotations

import socket
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from encore.local import start_broker
from streams.admin import Admin, ensure_topics
from streams.topic_line import TopicFacts, TopicLine


@pytest.fixture
def topic(broker: str) -> str:
    name = f"t-{uuid.uuid4().hex}"
    ensure_topics(broker, {name: 3})
    return name


def test_it_says_what_the_client_says(broker: str, topic: str) -> None:
    line = TopicLine(broker, 30_000)
    with Admin(broker) as admin:
        for name in (topic, "no such topic", topic, topic):
            assert line.ask(name) == admin._described(name)
    facts = line.ask(topic)
    assert facts is not None and facts.partitions == 3
    line.close()
    assert line.ask(topic) == facts
    line.close()


def test_threads_that_ask_at_once_get_their_own_answers(broker: str, topic: str) -> None:
    """Each of a process's logs is looked at by a thread, over the one connection."""
    line = TopicLine(broker, 30_000)
    other = f"{topic}-other"
    ensure_topics(broker, {other: 1})
    asked = [topic, other, "no such topic"] * 60
    with ThreadPoolExecutor(6) as threads:
        found = list(threads.map(line.ask, asked))
    line.close()
    assert [facts.partitions if facts else 0 for facts in found] == [3, 1, 0] * 60
    assert all(
        facts is None or facts.name == name for facts, name in zip(found, asked, strict=True)
    )


def test_another_broker_is_asked_where_one_is_gone(broker: str, topic: str) -> None:
    line = TopicLine(f"127.0.0.1:1,{broker}", 30_000)
    assert line.ask(topic) is not None
    line.close()
    line = TopicLine("127.0.0.1:1", 30_000)
    with pytest.raises(ConnectionRefusedError):
        line.ask(topic)


def test_a_broker_that_lost_its_logs_is_asked_anew(tmp_path: Path) -> None:
    first = start_broker(tmp_path)
    port = int(first.address.rpartition(":")[2])
    line = TopicLine(first.address, 30_000)
    try:
        ensure_topics(first.address, {"t": 1})
        before = line.ask("t")
    finally:
        first.child.kill()
    second = start_broker(tmp_path, port)
    try:
        assert line.ask("t") is None
        ensure_topics(second.address, {"t": 1})
        after = line.ask("t")
    finally:
        line.close()
        second.child.kill()
    assert before is not None and after is not None
    assert before.topic_id != after.topic_id


@pytest.fixture
def talks_nonsense() -> Iterator[tuple[str, list[bytes]]]:
    """A server that answers each connection's first request with what the list has next."""
    answers: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    line, _ = server.accept()
                except OSError:
                    return
                with line, suppress(OSError):
                    if line.recv(1024) and answers:
                        line.sendall(answers.pop(0))

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}", answers
        server.shutdown(socket.SHUT_RDWR)
    thread.join(30)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"\x00\x00\x00\x05hello", ValueError),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", ValueError),
        (b"\x00\x00\x00\x09half", ConnectionResetError),
        (b"", ConnectionResetError),
    ],
)
def test_what_is_no_reply(
    talks_nonsense: tuple[str, list[bytes]], answer: bytes, error: type[Exception]
) -> None:
    place, answers = talks_nonsense
    line = TopicLine(place, 30_000)
    answers.append(answer)
    with pytest.raises(error):
        line.ask("t")


def test_the_client_is_asked_where_the_line_fails(
    broker: str, topic: str, talks_nonsense: tuple[str, list[bytes]]
) -> None:
    place, answers = talks_nonsense
    answers.append(b"\x00\x00\x00\x05hello")
    with Admin(broker) as admin:
        admin._line = TopicLine(place, 30_000)
        facts = admin.describe(topic)
        assert isinstance(facts, TopicFacts) and facts.name == topic
