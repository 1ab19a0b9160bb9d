"""A grpcio client generated from the protocol files, against `baton up`."""

import grpc
import pytest
from baton.v1 import admin_pb2, admin_pb2_grpc, common_pb2, inference_pb2 as pb, inference_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase


@pytest.fixture(scope="module")
def channel(cluster):
    with grpc.insecure_channel(cluster.grpc) as c:
        yield c


@pytest.fixture(scope="module")
def stub(channel):
    return inference_pb2_grpc.InferenceServiceStub(channel)


def options(max_tokens=8, **kw):
    return pb.GenerationOptions(stop=common_pb2.StopParams(max_tokens=max_tokens), **kw)


def chat(cluster, **kw):
    message = pb.ChatMessage(role="user", content="What is the capital of France?")
    return pb.ChatStreamRequest(model=cluster.model, messages=[message], options=options(32, **kw))


def test_chat_stream(stub, cluster):
    text, ends = "", []
    for event in stub.ChatStream(chat(cluster), timeout=60):
        assert len(event.request_id.value) == 16
        if event.HasField("delta"):
            text += event.delta.text
        else:
            ends.append(event.end)
    assert "Paris" in text and len(ends) == 1
    line = ends[0].timeline
    assert line.prefill_worker == "prefill-0" and line.decode_worker == "decode-0"
    assert line.kv_bytes > 0 and line.transport == "shm"
    phases = {common_pb2.Phase.Name(p.phase) for p in line.phases}
    assert {"PHASE_PREFILL", "PHASE_HANDOFF", "PHASE_FIRST_STEP"} <= phases


def test_generate_equals_stream_and_http(stub, cluster):
    ask = dict(model=cluster.model, prompt=pb.Prompt(text="The capital of France is"))
    whole = stub.Generate(pb.GenerateRequest(**ask, options=options(return_token_ids=True)), timeout=60)
    deltas = [e.delta for e in stub.GenerateStream(pb.GenerateStreamRequest(**ask, options=options()), timeout=60)
              if e.HasField("delta")]
    assert "".join(d.text for d in deltas) == whole.choices[0].text
    body = dict(model=cluster.model, prompt="The capital of France is", max_tokens=8, temperature=0)
    assert cluster.post("/v1/completions", body)["choices"][0]["text"] == whole.choices[0].text
    assert [t.position for t in whole.choices[0].tokens] == list(range(8))
    assert whole.usage.completion_tokens == 8


def test_tokenize_and_back(stub, cluster):
    ids = stub.Tokenize(pb.TokenizeRequest(model=cluster.model, text="naïve café 🙂 <|im_end|>"), timeout=10).token_ids
    assert 2 not in ids, "a control token in text is text"
    back = stub.Detokenize(pb.DetokenizeRequest(model=cluster.model, token_ids=ids), timeout=10).text
    assert back == "naïve café 🙂 <|im_end|>"


def test_models(stub, cluster):
    cards = stub.ListModels(pb.ListModelsRequest(), timeout=10).models
    assert [c.id for c in cards] == [cluster.model] and cards[0].max_model_len == 8192


def test_health_and_reflection(channel):
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", "baton.v1.InferenceService"):
        answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    services = ProtoReflectionDescriptorDatabase(channel).get_services()
    assert {"baton.v1.InferenceService", "baton.v1.AdminService", "grpc.health.v1.Health"} <= set(services)


def test_cluster_state(channel):
    state = admin_pb2_grpc.AdminServiceStub(channel).GetClusterState(admin_pb2.GetClusterStateRequest(), timeout=10)
    assert {(m.worker.worker_id, m.health) for m in state.members if m.role != "router"} == {
        ("prefill-0", "UP"), ("decode-0", "UP")}


NAN = float("nan")


@pytest.mark.parametrize(
    "request_, code",
    [
        (lambda c: pb.GenerateRequest(model="nope", prompt=pb.Prompt(text="a")), "NOT_FOUND"),
        (lambda c: pb.GenerateRequest(model=c.model), "INVALID_ARGUMENT"),
        (lambda c: pb.GenerateRequest(model=c.model, prompt=pb.Prompt(text="a"),
                                      options=options(sampling=common_pb2.SamplingParams(temperature=NAN))),
         "INVALID_ARGUMENT"),
        (lambda c: pb.GenerateRequest(model=c.model, prompt=pb.Prompt(text="a"),
                                      options=options(sampling=common_pb2.SamplingParams(top_p=NAN))),
         "INVALID_ARGUMENT"),
        (lambda c: pb.GenerateRequest(model=c.model, prompt=pb.Prompt(text="a"), options=options(n=10**9)),
         "INVALID_ARGUMENT"),
        (lambda c: pb.GenerateRequest(model=c.model, prompt=pb.Prompt(token_ids=pb.TokenIds(ids=[10**9]))),
         "INVALID_ARGUMENT"),
    ],
)
def test_bad_input(stub, cluster, request_, code):
    with pytest.raises(grpc.RpcError) as caught:
        stub.Generate(request_(cluster), timeout=10)
    assert caught.value.code().name == code
    assert any(key == "grpc-status-details-bin" for key, _ in caught.value.trailing_metadata())


def test_cancel_frees_everything(stub, cluster):
    request = chat(cluster)
    request.options.stop.max_tokens = 2000
    request.options.stop.ignore_eos = True
    call = stub.ChatStream(request, timeout=60)
    for _ in range(3):
        next(call)
    call.cancel()
    cluster.wait_at_rest(within=1.0)
