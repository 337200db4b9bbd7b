from __future__ import annotations

import json
from typing import Any

import pytest

from cotenant.calls import Call, Directory, Reply, Served
from cotenant.errors import WorkloadUnavailable
from tests.unit.gateway.house import MOCKUPS, WRITER, House, echo

pytestmark = pytest.mark.unit

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


async def test_a_chat_reaches_its_workload_with_the_bytes_the_client_sent() -> None:
    seen: list[Call] = []

    def engine(call: Call) -> Reply:
        seen.append(call)
        return Reply(200, b"{}")

    raw = b'{"model" : "tiny",  "messages": [], "x": 1.0}'
    async with House({"writer": engine}).client() as client:
        reply = await client.post("/v1/chat/completions", content=raw, headers={"content-type": "application/json"})
    assert reply.status_code == 200
    assert (seen[0].body, seen[0].url, seen[0].method) == (raw, "/v1/chat/completions", "POST")
    assert 0 < (seen[0].deadline_s or 0) <= WRITER.deadline_s


async def test_an_engines_own_error_and_headers_pass_through_but_not_its_framing(house: House) -> None:
    async with house.client() as client:
        reply = await client.post("/v1/completions", json={"model": "writer", "prompt": "x"})
    assert reply.headers["x-engine"] == "echo"
    assert reply.headers["content-length"] == str(len(reply.content))

    def refusing(call: Call) -> Reply:
        return Reply(422, b'{"error": {"message": "no"}}')

    async with House({"writer": refusing}).client() as client:
        reply = await client.post("/v1/chat/completions", json=CHAT)
    assert (reply.status_code, reply.json()) == (422, {"error": {"message": "no"}})


async def test_a_stream_arrives_chunk_by_chunk_and_is_not_to_be_cached(house: House) -> None:
    async with house.client() as client:
        reply = await client.post("/v1/chat/completions", json={**CHAT, "stream": True})
    assert reply.text == "data: one\n\ndata: two\n\ndata: [DONE]\n\n"
    assert reply.headers["content-type"] == "text/event-stream"
    assert reply.headers["cache-control"] == "no-store"


async def test_models_are_listed_and_retrieved_with_slashes_in_their_names(house: House) -> None:
    async with house.client() as client:
        listed = (await client.get("/v1/models")).json()
        one = (await client.get("/v1/models/org%2Ftiny")).json()
        missing = await client.get("/v1/models/tinny")
    assert [card["id"] for card in listed["data"]] == ["tiny", "org/tiny", "writer"]
    assert one in listed["data"]
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "model_not_found"
    assert "did you mean tiny?" in missing.json()["error"]["message"]


async def test_a_json_mockup_passes_its_accept_header_on(house: House) -> None:
    async with house.client(accept="image/webp") as client:
        seen = (await client.post("/v1/mockups", json={"template": "mug", "artwork": "x"})).json()
    assert (seen["accept"], seen["body"]["template"], seen["files"]) == ("image/webp", "mug", {})


async def test_an_uploaded_artwork_travels_as_bytes_beside_typed_fields(house: House) -> None:
    form = {"template": "mug", "samples": "16", "transparent": "true", "background": "123456", "size": "[64, 32]"}
    picture = bytes(range(256)) * 8192
    async with house.client() as client:
        reply = await client.post("/v1/mockups", data=form, files={"artwork": ("a.png", picture, "image/png")})
    assert reply.json()["body"] == {
        "artwork": {"file": "artwork"},
        "template": "mug",
        "samples": 16,
        "transparent": True,
        "background": "123456",
        "size": [64, 32],
    }
    assert reply.json()["files"] == {"artwork": len(picture)}


async def test_templates_of_all_renderers_are_merged_and_say_their_variant() -> None:
    def renderer(variant: str, *names: str) -> Any:
        def answer(call: Call) -> Reply:
            assert (call.method, call.url) == ("GET", "/v1/mockups/templates")
            return Reply(
                200,
                json.dumps(
                    {"object": "list", "variant": variant, "formats": ["png"], "data": [{"id": name} for name in names]}
                ).encode(),
            )

        return answer

    def down(call: Call) -> Reply:
        raise WorkloadUnavailable("no replica is ready")

    served = (MOCKUPS, Served("posters", "mockup"), Served("broken", "mockup"))
    handlers = {"mockups": renderer("llvm", "mug", "poster"), "posters": renderer("cuda", "flyer"), "broken": down}
    async with House(handlers, directory=Directory(served)).client() as client:
        answer = (await client.get("/v1/mockups/templates")).json()
    assert answer["data"] == [
        {"id": "mug", "workload": "mockups", "variant": "llvm"},
        {"id": "poster", "workload": "mockups", "variant": "llvm"},
        {"id": "flyer", "workload": "posters", "variant": "cuda"},
    ]
    assert answer["renderers"] == [
        {"workload": "mockups", "variant": "llvm", "formats": ["png"]},
        {"workload": "posters", "variant": "cuda", "formats": ["png"]},
    ]
    assert answer["unavailable"] == [{"workload": "broken", "error": "no replica is ready"}]


async def test_templates_are_unavailable_when_every_renderer_is(house: House) -> None:
    def down(call: Call) -> Reply:
        raise WorkloadUnavailable("no replica is ready")

    async with House({"writer": echo, "mockups": down}).client() as client:
        reply = await client.get("/v1/mockups/templates")
    assert reply.status_code == 503
    assert "mockups: no replica is ready" in reply.json()["error"]["message"]


async def test_readiness_names_the_workload_that_is_not_ready_and_why(house: House) -> None:
    async with house.client() as client:
        assert (await client.get("/readyz")).json()["ready"] is True
        house.backend.down["writer"] = "loading weights"
        reply = await client.get("/readyz")
        assert reply.status_code == 503
        assert reply.json()["error"]["message"] == "not ready: writer: loading weights"
        assert reply.json()["workloads"]["mockups"]["ready"] is True
        house.directory = Directory((MOCKUPS, Served("late", "llm")))
        assert "late: is not deployed" in (await client.get("/readyz")).json()["error"]["message"]
        assert (await client.head("/healthz")).status_code == 200
        assert (await client.get("/healthz")).json() == {"status": "ok"}


async def test_what_is_served_can_change_under_a_running_door(house: House) -> None:
    async with house.client() as client:
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200
        house.directory = Directory((Served("writer", "llm", models=("tiny-2",)),))
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 404
        assert (await client.post("/v1/chat/completions", json={**CHAT, "model": "tiny-2"})).status_code == 200


async def test_the_api_description_lists_bodies_and_the_key_and_needs_none(house: House) -> None:
    async with house.client() as client:
        schema = (await client.get("/openapi.json")).json()
        assert (await client.get("/docs")).status_code == 200
    assert set(schema["paths"]) >= {"/v1/chat/completions", "/v1/completions", "/v1/mockups", "/v1/mockups/templates"}
    assert set(schema["paths"]["/v1/mockups"]["post"]["requestBody"]["content"]) == {
        "application/json",
        "multipart/form-data",
    }
    assert schema["components"]["securitySchemes"]["key"]["scheme"] == "bearer"


async def test_metrics_tell_requests_by_workload_route_status_and_tenant(house: House) -> None:
    async with house.client() as client:
        await client.post("/v1/chat/completions", json={**CHAT, "stream": True})
        await client.post("/v1/chat/completions", json={"model": "none"})
        await client.get("/v1/nothing")
        text = (await client.get("/metrics")).text
    chat = "/v1/chat/completions"
    assert house.count("requests_total", workload="writer", route=chat, status="200", tenant="") == 1
    assert house.count("requests_total", workload="", route=chat, status="404", tenant="") == 1
    assert house.count("requests_total", workload="", route="unmatched", status="404", tenant="") == 1
    assert house.count("first_chunk_seconds_count", workload="writer") == 1
    assert house.count("request_seconds_count", workload="writer", route=chat) == 1
    assert house.count("in_flight_requests", workload="writer") == 0
    assert "cotenant_gateway_requests_total{" in text


def test_two_gateways_in_one_process_do_not_share_their_counts(house: House) -> None:
    other = House({"writer": echo})
    house.metrics.refused("writer")
    assert (house.count("queue_refusals_total", workload="writer"), other.count("queue_refusals_total")) == (1, 0)


async def test_a_request_id_is_kept_if_it_is_sane_and_made_otherwise(house: House) -> None:
    async with house.client() as client:
        for given, kept in (("job-7:a.b", True), ("x" * 129, False), ("a b", False), ('"', False)):
            reply = await client.post("/v1/chat/completions", json=CHAT, headers={"x-request-id": given})
            assert (reply.headers["x-request-id"] == given) is kept
            assert reply.json()["request_id"] == reply.headers["x-request-id"]
        made = [(await client.get("/healthz")).headers["x-request-id"] for _ in range(2)]
    assert made[0] != made[1]
