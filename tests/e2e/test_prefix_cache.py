"""The prefix cache: what was computed once is not computed again, the answer stays the same to the bit, and tenants
never share."""

import random

import grpc
import pytest
from baton.v1 import common_pb2, inference_pb2 as pb, inference_pb2_grpc
from procs import Cluster, Http

BLOCK = 16
GREEDY = dict(temperature=0)
SEEDED = dict(temperature=0.9, top_p=0.95, seed=11, repetition_penalty=1.1)


def tokens(n, seed):
    rnd = random.Random(seed)
    return [rnd.randrange(20, 49000) for _ in range(n)]


def complete(cluster, prompt, sampling=None, tenant=None, **more):
    """Ids, logprobs and reused tokens of one answer."""
    body = dict(model=cluster.model, prompt=prompt, max_tokens=20, return_token_ids=True, logprobs=2, ignore_eos=True,
                **(sampling or GREEDY), **more)
    answer = cluster.post("/v1/completions", body, headers={"x-baton-tenant": tenant} if tenant else None)
    choice, usage = answer["choices"][0], answer["usage"]
    logprobs = choice["logprobs"]["token_logprobs"], choice["logprobs"]["top_logprobs"]
    return choice["token_ids"], logprobs, usage["prompt_tokens_details"]["cached_tokens"]


def metric(admin, name):
    lines = [line for line in admin.text("/metrics").splitlines() if line.startswith((name + " ", name + "{"))]
    assert lines, f"no {name}"
    return int(sum(float(line.split()[-1]) for line in lines))


class Computed:
    """Tokens that each role has computed since it was asked last."""

    def __init__(self, cluster, command):
        if command == "single":
            self.admins = {"decode": cluster.admin}
        else:
            children = [c for c in cluster.children() if c["role"] != "router"]
            self.admins = {c["role"]: Http(f"http://127.0.0.1:{c['ports']['admin']}") for c in children}
        self.before = self.now()

    def now(self):
        return {role: metric(admin, "baton_worker_computed_tokens_total") for role, admin in self.admins.items()}

    def since(self):
        before, self.before = self.before, self.now()
        return {role: n - before[role] for role, n in self.before.items()}


@pytest.fixture(scope="module", params=["auto", "f32"])
def compute(request):
    return request.param


@pytest.fixture(scope="module")
def cold(model, compute):
    """Nothing is kept here."""
    with Cluster("single", "--model", model, "--compute", compute, "--prefix-cache", "off") as c:
        yield c


@pytest.mark.parametrize("command", ["single", "up"])
def test_second_turn_computes_only_what_is_new(model, compute, cold, command):
    with Cluster(command, "--model", model, "--compute", compute) as c:
        computed = Computed(c, command)
        for i, sampling in enumerate([GREEDY, SEEDED]):
            for n_first in [40, 64, 150]:
                first = tokens(n_first, f"{i} {n_first}")
                ids, logprobs, cached = complete(c, first, sampling)
                assert (ids, logprobs, 0) == complete(cold, first, sampling) and cached == 0
                computed.since()
                second = first + ids + tokens(30, n_first)
                found = complete(c, second, sampling)
                n = computed.since()
                # The last token of an answer is never fed.
                n_all, n_prefill = (n_first + len(ids) - 1) // BLOCK * BLOCK, n_first // BLOCK * BLOCK
                if command == "single":
                    assert found[2] == n_all
                    assert n == {"decode": len(second) - n_all + 19}
                else:
                    assert found[2] == n_prefill, "prefill has the prompt, decode the answer too"
                    assert n == {"prefill": len(second) - n_prefill, "decode": 19}
                want = complete(cold, second, sampling)
                assert found[:2] == want[:2] and want[2] == 0
                # The same again, of which all but the last block is at hand.
                assert complete(c, second, sampling)[:2] == want[:2]
        if command == "up":
            c.wait_at_rest(2.0)
            state = c.accounting().values()
            assert all(a["blocks"]["cached"] > 0 for a in state), state


@pytest.fixture(scope="module")
def warm(model):
    with Cluster("up", "--model", model) as c:
        yield c


def test_decode_pulls_only_what_is_missing(warm):
    prompt = tokens(160, "pull")
    line = "baton_transfer_payload_bytes_total"
    admins = {c["role"]: Http(f"http://127.0.0.1:{c['ports']['admin']}") for c in warm.children()}
    complete(warm, prompt)
    once = metric(admins["prefill"], line)
    complete(warm, prompt)
    twice = metric(admins["prefill"], line) - once
    # Ten blocks are full, nine are shared: a token is always left to compute.
    assert 0 < twice and once >= twice * 10, (once, twice)


def test_chat_over_http_and_grpc_counts_what_was_reused(warm):
    messages = [dict(role="system", content="You answer briefly, in one sentence, and you like to name cities."),
                dict(role="user", content="What is the capital of France?")]

    def turn():
        body = dict(model=warm.model, messages=messages, max_tokens=24, temperature=0)
        answer = warm.post("/v1/chat/completions", body)
        messages.append(answer["choices"][0]["message"])
        return answer["usage"]

    first = turn()
    messages.append(dict(role="user", content="And of Italy?"))
    second = turn()
    assert first["prompt_tokens_details"]["cached_tokens"] == 0
    cached = second["prompt_tokens_details"]["cached_tokens"]
    assert first["prompt_tokens"] - BLOCK <= cached < second["prompt_tokens"], (first, second)

    with grpc.insecure_channel(warm.grpc) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        call = pb.GenerateRequest(
            model=warm.model, prompt=pb.Prompt(token_ids=pb.TokenIds(ids=tokens(100, "grpc"))),
            options=pb.GenerationOptions(stop=common_pb2.StopParams(max_tokens=4)))
        usage = [stub.Generate(call, timeout=60, metadata=metadata).usage.cached_tokens
                 for metadata in [(), (), [("x-baton-tenant", "other")]]]
        assert usage == [0, 96, 0]
        with pytest.raises(grpc.RpcError) as refused:
            stub.Generate(call, timeout=60, metadata=[("x-baton-tenant", "t" * 200)])
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_tenants_never_share(warm):
    computed, prompt = Computed(warm, "up"), tokens(200, "tenants")
    answers = []
    for tenant, n_cached in [("a", 0), ("b", 0), (None, 0), ("a", 192), ("b", 192)]:
        ids, logprobs, cached = complete(warm, prompt, tenant=tenant)
        assert (cached, computed.since()["prefill"]) == (n_cached, 200 - n_cached), tenant
        answers.append((ids, logprobs))
    assert all(answer == answers[0] for answer in answers)
    for bad in ["", "a b", "é", "t" * 129]:
        body = dict(model=warm.model, prompt="x", max_tokens=1)
        status, answer = warm.try_post("/v1/completions", body, headers={"x-baton-tenant": bad.encode()})
        assert status == 400 and "x-baton-tenant" in str(answer), (bad, status, answer)


def test_cancelled_requests_leave_nothing_owned_and_blocks_to_share(warm):
    for i in range(12):
        prompt = tokens(120, f"cancel {i % 3}")
        body = dict(model=warm.model, prompt=prompt, max_tokens=200, ignore_eos=True)
        events = warm.stream("/v1/completions", body)
        for _ in range(i % 4):
            next(events)
        events.close()
    warm.wait_at_rest(2.0)
    assert complete(warm, tokens(120, "cancel 2"))[2] > 0


def test_under_pressure_answers_stay_right(model, cold, compute):
    rnd = random.Random(7)
    texts = [tokens(300, f"text {i}") for i in range(5)]
    with Cluster("up", "--model", model, "--compute", compute, "--kv-blocks", "48") as c:
        for i in range(20):
            text = rnd.choice(texts)
            prompt = text[: rnd.randrange(20, 300)] + tokens(rnd.randrange(1, 20), i)
            found = complete(c, prompt, tenant=rnd.choice(["a", "b"]))
            assert found[:2] == complete(cold, prompt)[:2], i
        c.wait_at_rest(2.0)
        admin = Http(f"http://127.0.0.1:{c.children('decode')[0]['ports']['admin']}")
        assert metric(admin, "baton_kvcache_evicted_blocks_total") > 0, "no pressure"
