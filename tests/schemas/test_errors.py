"""The error hierarchy: four parts in one sentence."""

from __future__ import annotations

import pickle

from schemas.errors import DeclarationError, RequestError


def test_the_message_says_where_required_got_do() -> None:
    error = DeclarationError(
        "user_plays.window",
        required="a multiple of the 5 min hop",
        got="7 min",
        do="use 5 or 10 min",
    )
    assert str(error) == (
        "user_plays.window: needs a multiple of the 5 min hop, got 7 min; use 5 or 10 min"
    )
    assert error.parts() == {
        "code": "declaration",
        "where": "user_plays.window",
        "required": "a multiple of the 5 min hop",
        "got": "7 min",
        "do": "use 5 or 10 min",
    }


def test_a_request_error_carries_its_status() -> None:
    assert RequestError("rank.user_id", required="INT64", got="FP32").status == 400
    assert RequestError("models.x", required="rank", got="x", status=404).status == 404


def test_errors_come_back_from_other_processes() -> None:
    error = RequestError("models.x", required="rank", got="x", do="y", status=404)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.args) == (RequestError, str(error), error.args)
    assert (again.parts(), again.status) == (error.parts(), 404)
