"""A Pub/Sub that answers as it is told, by real gRPC on loopback: for answers that the emulator never gives."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import grpc
from google.protobuf import any_pb2, empty_pb2
from google.pubsub_v1 import types as pubsub_types
from google.rpc import error_details_pb2, status_pb2

_REQUESTS: Mapping[str, Any] = {
    "/google.pubsub.v1.Publisher/CreateTopic": pubsub_types.Topic,
    "/google.pubsub.v1.Publisher/GetTopic": pubsub_types.GetTopicRequest,
    "/google.pubsub.v1.Publisher/Publish": pubsub_types.PublishRequest,
    "/google.pubsub.v1.Subscriber/CreateSubscription": pubsub_types.Subscription,
    "/google.pubsub.v1.Subscriber/Pull": pubsub_types.PullRequest,
    "/google.pubsub.v1.Subscriber/Acknowledge": pubsub_types.AcknowledgeRequest,
    "/google.pubsub.v1.Subscriber/ModifyAckDeadline": pubsub_types.ModifyAckDeadlineRequest,
}


class Refusal(Exception):
    """Makes the server end a call with a status; `failures` are ack ids and what is wrong with them."""

    def __init__(self, code: grpc.StatusCode, text: str = "", failures: Mapping[str, str] | None = None) -> None:
        super().__init__(text)
        self.code = code
        self.failures = failures

    @property
    def trailers(self) -> tuple[tuple[str, bytes], ...]:
        if self.failures is None:
            return ()
        detail = any_pb2.Any()
        detail.Pack(error_details_pb2.ErrorInfo(reason="EXACTLY_ONCE_ACKID_FAILURE", metadata=self.failures))
        status = status_pb2.Status(code=self.code.value[0], message=str(self), details=[detail])
        return (("grpc-status-details-bin", status.SerializeToString()),)


class ScriptedPubSub:
    """`requests` are those that came, by method. `answers` says what the next calls of a method are told."""

    def __init__(self) -> None:
        self.host = ""
        self.requests: dict[str, list[Any]] = {}
        self.answers: dict[str, deque[Exception | None]] = {}
        self.judge: Callable[[str, Any], Exception | None] = lambda method, request: None
        """Asked where `answers` has nothing to say."""

    def of(self, method: str) -> list[Any]:
        return self.requests.get(method, [])

    def tell(self, method: str, *answers: Exception | None) -> None:
        self.answers.setdefault(method, deque()).extend(answers)

    async def answer(self, method: str, request: Any, context: Any) -> Any:
        self.requests.setdefault(method, []).append(request)
        told = self.answers.get(method)
        refusal = told.popleft() if told else self.judge(method, request)
        if isinstance(refusal, Refusal):
            await context.abort(refusal.code, str(refusal), refusal.trailers)
        if method == "Publish":
            count = sum(len(one.messages) for one in self.requests["Publish"])
            first = count - len(request.messages)
            return pubsub_types.PublishResponse(message_ids=[str(n) for n in range(first, count)])
        if method == "Pull":
            return pubsub_types.PullResponse()
        return request if method.startswith("Create") else empty_pb2.Empty()


@asynccontextmanager
async def scripted_pubsub() -> AsyncIterator[ScriptedPubSub]:
    script = ScriptedPubSub()

    class Handler(grpc.GenericRpcHandler):
        def service(self, details: Any) -> Any:
            request_type = _REQUESTS.get(details.method)
            if request_type is None:
                return None
            method = details.method.rsplit("/", 1)[-1]

            async def behaviour(request: Any, context: Any) -> Any:
                return await script.answer(method, request, context)

            def serialize(reply: Any) -> bytes:
                plain = reply if isinstance(reply, empty_pb2.Empty) else type(reply).pb(reply)
                return bytes(plain.SerializeToString())

            return grpc.unary_unary_rpc_method_handler(behaviour, request_type.deserialize, serialize)

    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    server.add_generic_rpc_handlers((Handler(),))
    script.host = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield script
    finally:
        await server.stop(None)
