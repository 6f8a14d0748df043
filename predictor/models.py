"""The protocol's two models, `rank` and `aggregate`: what they take, and what they give."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from aggregation.program import Assembled
from predictor.generation import ServingGeneration
from predictor.limits import Limits
from predictor.protocol import InferReply, InferRequest
from predictor.rank import Ranker
from predictor.record import Query
from predictor.timeline import current
from schemas.errors import RequestError
from schemas.ranklog import Degraded, degraded_text
from schemas.status import Status

MAX_TIME_MS: Final = 1 << 48
INPUTS: Final = ("user_id", "candidate_ids")
PARAMETERS: Final = ("request_id", "now_ms", "timeout", "page_size")
#: Output name -> (datatype, shape); -1 for an axis that varies.
Signature = dict[str, tuple[str, tuple[int, ...]]]


class Defaults(Protocol):
    """The settings that complete a request."""

    limits: Limits
    page_size: int
    timeout_ms: float
    allow_now_ms: bool


@dataclass(frozen=True, slots=True)
class Call:
    """How a request came. received_ms: when, on the server's clock. version: of the model, "" for
    any. remaining_ms: until the caller's own deadline, None where the protocol names none."""

    received_ms: int
    version: str = ""
    remaining_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """One served request. outputs: how to make each output; only the chosen ones are made."""

    generation: ServingGeneration
    degraded: Degraded
    assembled: Assembled
    outputs: Mapping[str, Callable[[], NDArray[Any]]]

    def parameters(self, query: Query) -> dict[str, Any]:
        """What every reply says beside its tensors."""
        found = np.bincount(self.assembled.item_status.ravel(), minlength=len(Status))
        found += np.bincount(self.assembled.user_status, minlength=len(Status))
        counts = {status.name: int(found[status]) for status in Status if found[status]}
        return {
            **self.generation.versions(),
            "request_id": str(query.request_id),
            "degraded": degraded_text(self.degraded),
            "now_ms": query.now_ms,
            "newest_ms": self.assembled.newest_ms,
            "statuses": ",".join(f"{name}={count}" for name, count in counts.items()),
        }


class ServedModel(Protocol):
    """A model of the protocol. `default`: the outputs of a request that names none."""

    name: str
    default: tuple[str, ...]

    def signature(self, generation: ServingGeneration) -> Signature:
        """Its outputs under a generation."""
        ...

    async def run(self, ranker: Ranker, query: Query) -> Answer:
        """Serve one request. Raises RequestError."""
        ...


def _status_signature(generation: ServingGeneration) -> Signature:
    program = generation.program
    return {
        "user_status": ("UINT8", (len(program.user_views),)),
        "item_status": ("UINT8", (-1, len(program.item_views))),
    }


def _status_outputs(assembled: Assembled) -> dict[str, Callable[[], NDArray[Any]]]:
    return {
        "user_status": lambda: assembled.user_status,
        "item_status": lambda: assembled.item_status,
    }


class RankModel:
    """Candidates in, a page out."""

    name = "rank"
    default: tuple[str, ...] = ("page_ids", "page_scores")

    def signature(self, generation: ServingGeneration) -> Signature:
        """page_ids, page_scores (K,); coarse_score, fine_score (N,); statuses."""
        return {
            "page_ids": ("INT64", (-1,)),
            "page_scores": ("FP32", (-1,)),
            "coarse_score": ("FP32", (-1,)),
            "fine_score": ("FP32", (-1,)),
            **_status_signature(generation),
        }

    async def run(self, ranker: Ranker, query: Query) -> Answer:
        """Rank and log."""
        reply = await ranker.rank(query)
        outputs: dict[str, Callable[[], NDArray[Any]]] = {
            "page_ids": lambda: reply.page_ids,
            "page_scores": lambda: reply.page_scores,
            "coarse_score": lambda: reply.ranking.coarse,
            "fine_score": lambda: reply.fine_scores,
            **_status_outputs(reply.assembled),
        }
        return Answer(reply.generation, reply.ranking.degraded, reply.assembled, outputs)


class AggregateModel:
    """Candidates in, the int-ID tensors out that the models would read."""

    name = "aggregate"
    default: tuple[str, ...] = ()

    def signature(self, generation: ServingGeneration) -> Signature:
        """user_slots (1, Su), item_slots (N, Si), sequence.<name> (1, L), length.<name> (1,)."""
        service = generation.service
        signature: Signature = {
            "user_slots": ("INT32", (1, len(service.slots("user")))),
            "item_slots": ("INT32", (-1, len(service.slots("item")))),
        }
        for sequence in service.sequences:
            signature[f"sequence.{sequence.name}"] = ("INT32", (1, sequence.capacity))
            signature[f"length.{sequence.name}"] = ("INT32", (1,))
        return signature | _status_signature(generation)

    async def run(self, ranker: Ranker, query: Query) -> Answer:
        """Assemble; nothing is logged."""
        reply = await ranker.aggregate(query)
        tensors = reply.assembled.tensors
        outputs: dict[str, Callable[[], NDArray[Any]]] = {
            "user_slots": lambda: tensors.user_slots,
            "item_slots": lambda: tensors.item_slots,
            **_status_outputs(reply.assembled),
        }
        for name in tensors.sequences:
            outputs[f"sequence.{name}"] = partial(tensors.sequences.__getitem__, name)
            outputs[f"length.{name}"] = partial(tensors.lengths.__getitem__, name)
        return Answer(reply.generation, reply.degraded, reply.assembled, outputs)


MODELS: Final[dict[str, ServedModel]] = {
    model.name: model for model in (RankModel(), AggregateModel())
}


def served_model(name: str) -> ServedModel:
    """The model of that name. Raises RequestError (404)."""
    try:
        return MODELS[name]
    except KeyError:
        raise RequestError(
            "model", required=f"one of {', '.join(MODELS)}", got=repr(name)[:80], status=404
        ) from None


def metadata(
    model: ServedModel, generation: ServingGeneration, news: Mapping[str, str]
) -> dict[str, Any]:
    """The protocol's model metadata; `parameters` says what serves. news: of what was published
    and does not serve, said there, too."""
    shapes: Signature = {"user_id": ("INT64", (1,)), "candidate_ids": ("INT64", (-1,))}

    def tensors(signature: Signature) -> list[dict[str, Any]]:
        return [
            {"name": name, "datatype": datatype, "shape": shape}
            for name, (datatype, shape) in signature.items()
        ]

    return {
        "name": model.name,
        "versions": [generation.service.fingerprint],
        "platform": "encore",
        "inputs": tensors(shapes),
        "outputs": tensors(model.signature(generation)),
        "parameters": {
            **generation.versions(),
            "service": generation.service.name,
            "fingerprint": generation.service.fingerprint,
            "user_views": ",".join(view.name for view in generation.program.user_views),
            "item_views": ",".join(view.name for view in generation.program.item_views),
            **news,
        },
    }


def check_version(version: str, generation: ServingGeneration) -> None:
    """A model's version is the fingerprint of the feature service: what its ids mean.

    Raises RequestError (404) where another one is asked for than the one that serves.
    """
    serving = generation.service.fingerprint
    if version and version != serving:
        raise RequestError(
            "version",
            required=f"{serving}, which serves",
            got=repr(version)[:80],
            do="ask without a version, or take over what this one's ids mean",
            status=404,
        )


async def serve(
    model: ServedModel, ranker: Ranker, request: InferRequest, settings: Defaults, call: Call
) -> InferReply:
    """Serve one parsed request: the reply. Raises RequestError."""
    generation = ranker.generations.current
    check_version(call.version, generation)
    signature = model.signature(generation)
    chosen = request.outputs or model.default or tuple(signature)
    for name in chosen:
        if name not in signature:
            required = f"one of {', '.join(signature)}"
            raise RequestError("outputs", required=required, got=repr(name))
    query = query_of(request, settings, call)
    if request.id is not None:
        current().caller_id = request.id
    answer = await model.run(ranker, query)
    check_version(call.version, answer.generation)
    return InferReply(
        model=model.name,
        version=answer.generation.service.fingerprint,
        id=str(query.request_id) if request.id is None else request.id,
        parameters=answer.parameters(query),
        outputs=[(name, answer.outputs[name]()) for name in chosen if name in answer.outputs],
    )


# --- request → query ------------------------------------------------------------------------


def query_of(request: InferRequest, settings: Defaults, call: Call) -> Query:
    """A well-formed request checked for what both models take. Raises RequestError."""
    if set(request.inputs) != set(INPUTS):
        got = ", ".join(sorted(request.inputs)) or "none"
        raise RequestError("inputs", required=" and ".join(INPUTS), got=got[:200])
    users, candidates = request.inputs["user_id"], request.inputs["candidate_ids"]
    if len(users) != 1:
        raise RequestError("inputs.user_id.shape", required="[1]", got=f"[{len(users)}]")
    _check_candidates(candidates, settings.limits.candidates)
    given = request.parameters
    if unknown := sorted(given.keys() - set(PARAMETERS)):
        required = f"only {', '.join(PARAMETERS)}"
        raise RequestError("parameters", required=required, got=repr(unknown[0])[:80])
    if "now_ms" in given and not settings.allow_now_ms:
        raise RequestError(
            "parameters.now_ms",
            required="the server's own clock",
            got=repr(given["now_ms"])[:80],
            do="set allow_now_ms on a server that replays",
        )
    return Query(
        request_id=_request_id(request),
        user_id=int(users[0]),
        candidate_ids=candidates,
        now_ms=_integer(given, "now_ms", call.received_ms, MAX_TIME_MS),
        received_ms=call.received_ms,
        page_size=_integer(given, "page_size", settings.page_size, settings.limits.page),
        timeout_ms=_timeout_ms(given, settings, call.remaining_ms),
        caller_id=request.id or "",
    )


def _check_candidates(candidates: NDArray[np.int64], most: int) -> None:
    where, n = "inputs.candidate_ids", len(candidates)
    if not 0 < n <= most:
        raise RequestError(where, required=f"1 to {most} candidates", got=str(n))
    ordered = np.sort(candidates)  # (N,)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(twice):
        raise RequestError(where, required="each candidate once", got=f"{twice[0]} again")


def _integer(given: Mapping[str, Any], name: str, default: int, most: int) -> int:
    value = given.get(name, default)
    if type(value) is not int or not 1 <= value <= most:
        required = f"an integer from 1 to {most}"
        raise RequestError(f"parameters.{name}", required=required, got=repr(value)[:80])
    return value


def _timeout_ms(given: Mapping[str, Any], settings: Defaults, remaining_ms: float | None) -> float:
    """The parameter, bounded by the caller's own deadline; the default where neither is given."""
    most = settings.limits.timeout_ms
    ends_ms = most if remaining_ms is None else min(remaining_ms, most)
    if "timeout" not in given:
        return settings.timeout_ms if remaining_ms is None else ends_ms
    value = given["timeout"]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= most:
        raise RequestError(
            "parameters.timeout",
            required=f"ms from 1 to {most}",
            got=repr(value)[:80],
            do="tritonclient's argument of that name is documented in µs: give it ms here, or set"
            " the call's own deadline",
        )
    return min(float(value), ends_ms)


def _request_id(request: InferRequest) -> uuid.UUID:
    """The key of the rank log: the parameter `request_id`, or the field `id` where it is a UUID, or
    made here.

    A caller's other ids are echoed, and are no keys: the protocol asks nobody to use one once, and
    of two records under one key the log's readers take one for a copy of the other.
    """
    named, given = request.parameters.get("request_id"), _as_uuid(request.id)
    if named is None:
        return uuid.uuid4() if given is None else given
    key = _as_uuid(named)
    if key is None:
        got = repr(named)[:80]
        raise RequestError("parameters.request_id", required="a UUID", got=got)
    if given is not None and key != given:
        required = "the same as the field id"
        raise RequestError("parameters.request_id", required=required, got=repr(named)[:80])
    return key


def _as_uuid(text: object) -> uuid.UUID | None:
    if not isinstance(text, str):
        return None
    try:
        return uuid.UUID(text)
    except ValueError:
        return None
