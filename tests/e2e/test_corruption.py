"""A man in the middle of the KV data plane damages what decode pulls.

With checksums on, every damage is caught and the answer is right. With checksums off, a block overwritten with
noise changes the answer: the positive control of every "same tokens" test.
"""

import concurrent.futures as cf
import itertools
import random
import struct

import grpc
import pytest
from baton.v1 import kv_pb2, kv_pb2_grpc
from procs import Cluster, Http, Process, free_port, required_env, role_process, wait_ready

LIMITS = [("grpc.max_receive_message_length", 64 << 20), ("grpc.max_send_message_length", 64 << 20)]


class Middle(kv_pb2_grpc.KvServiceServicer):
    """Forwards Fetch to the real prefill worker and lets `damage` change each answer."""

    def __init__(self):
        self.damage, self.damaged, self.target = None, 0, None
        self.server = grpc.server(cf.ThreadPoolExecutor(16), options=LIMITS)
        kv_pb2_grpc.add_KvServiceServicer_to_server(self, self.server)
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        self.server.start()

    def Fetch(self, requests, context):
        first = next(requests)
        refetch = bool(first.only)
        with grpc.insecure_channel(self.target, options=LIMITS) as channel:
            call = kv_pb2_grpc.KvServiceStub(channel).Fetch(itertools.chain([first], requests), timeout=60)
            context.add_callback(call.cancel)
            try:
                for answer in call:
                    if self.damage and not refetch:
                        answer = self.damage(self, answer)
                    if answer is not None:
                        yield answer
            except grpc.RpcError as error:
                context.abort(error.code(), error.details())


def flip_payload_bit(rnd):
    def damage(middle, answer):
        if answer.HasField("frames") and not middle.damaged:
            frame = rnd.choice(answer.frames.frames)
            payload, bit = bytearray(frame.payload), rnd.randrange(8 * len(frame.payload))
            payload[bit // 8] ^= 1 << bit % 8
            frame.payload, middle.damaged = bytes(payload), 1
        return answer

    return damage


def flip_header_bit(rnd):
    def damage(middle, answer):
        if answer.HasField("frames") and not middle.damaged:
            frame = rnd.choice(answer.frames.frames)
            middle.damaged, which = 1, rnd.randrange(5)
            if which == 0:
                frame.block_index ^= 1 << rnd.randrange(4)
            elif which == 1:
                frame.n_tokens ^= 1 << rnd.randrange(4)
            elif which == 2:
                frame.owner_epoch ^= 1
            elif which == 3:
                frame.checksum ^= 1 << rnd.randrange(64)
            else:
                frame.block_hash = bytes([frame.block_hash[0] ^ 1]) + frame.block_hash[1:]
        return answer

    return damage


def noise_block(rnd):
    """Overwrites one whole block, in every layer, with plausible numbers."""
    block = []

    def damage(middle, answer):
        if answer.HasField("frames"):
            for frame in answer.frames.frames:
                if not block:
                    block.append(frame.block_index)
                if frame.block_index == block[0]:
                    # f16, as `--compute auto` keeps KV; the pattern repeats over the payload.
                    chunk = struct.pack("<256e", *(rnd.gauss(0, 1) for _ in range(256)))
                    size = len(frame.payload)
                    frame.payload = (chunk * (size // len(chunk) + 1))[:size]
                    middle.damaged = 1
        return answer

    return damage


def drop_frame(rnd):
    def damage(middle, answer):
        if answer.HasField("frames") and not middle.damaged:
            del answer.frames.frames[rnd.randrange(len(answer.frames.frames))]
            middle.damaged = 1
        return answer

    return damage


def swap_frames(rnd):
    def damage(middle, answer):
        if answer.HasField("frames") and not middle.damaged and len(answer.frames.frames) > 1:
            a, b = rnd.sample(range(len(answer.frames.frames)), 2)
            frames = answer.frames.frames
            frames[a].payload, frames[b].payload = frames[b].payload, frames[a].payload
            middle.damaged = 1
        return answer

    return damage


def no_manifest(_rnd):
    def damage(middle, answer):
        if answer.HasField("manifest"):
            middle.damaged = 1
            return None
        return answer

    return damage


class Deployment:
    """Router, prefill behind the man in the middle, decode; roles started by hand."""

    def __init__(self, model, checksum):
        self.middle, self.processes = Middle(), []
        try:
            registry_port = free_port()
            registry = Process(
                [required_env("BATON_BIN"), "registry", "--listen", f"127.0.0.1:{registry_port}"], name="registry")
            self.processes.append(registry)
            registry.wait_line("ready")
            url = f"etcd://127.0.0.1:{registry_port}"
            # Over gRPC, where the man in the middle is; crate `transfer` has one for each of the other transports.
            engine = ["--threads", "1", "--kv-checksum", checksum, "--transport", "grpc"]
            prefill = role_process("prefill", url, model, "p", *engine, "--kv-advertise", self.middle.address)
            self.processes.append(prefill)
            self.middle.target = f"127.0.0.1:{prefill.ports['kv']}"
            self.decode = role_process("decode", url, model, "d", *engine)
            self.processes.append(self.decode)
            router = role_process("router", url, model, "r")
            self.processes.append(router)
            self.http = Http(f"http://127.0.0.1:{router.ports['http']}")
            self.admins = [Http(f"http://127.0.0.1:{p.ports['admin']}") for p in (prefill, self.decode, router)]
            wait_ready(self.admins)
            self.model = self.http.get("/v1/models")["data"][0]["id"]
        except BaseException:
            self.close()
            raise

    def ask(self, prompt, damage=None, tenant="any"):
        """Tenants share no blocks: a tenant's first pull of a prompt is a whole one."""
        self.middle.damage, self.middle.damaged = damage, 0
        body = dict(model=self.model, prompt=prompt, max_tokens=8, temperature=0, return_token_ids=True,
                    ignore_eos=True, logprobs=0)
        choice = self.http.post("/v1/completions", body, headers={"x-baton-tenant": tenant})["choices"][0]
        return choice["token_ids"], choice["logprobs"]["token_logprobs"]

    def close(self):
        for process in reversed(self.processes):
            process.stop()
        self.middle.server.stop(None)


def prompts(n, seed):
    rnd = random.Random(seed)
    return [[rnd.randrange(20, 49000) for _ in range(rnd.choice([20, 33, 64, 150]))] for _ in range(n)]


@pytest.fixture(scope="module")
def guarded(model):
    deployment = Deployment(model, "on")
    yield deployment
    deployment.close()


@pytest.mark.parametrize(
    "kind", [flip_payload_bit, flip_header_bit, noise_block, drop_frame, swap_frames, no_manifest],
    ids=lambda k: k.__name__)
def test_every_damage_is_caught_and_the_answer_is_right(guarded, storm, kind):
    rnd = random.Random(kind.__name__)
    for prompt in prompts(40 if storm else 8, kind.__name__):
        want = guarded.ask(prompt, tenant="undamaged")
        got = guarded.ask(prompt, kind(rnd), tenant="damaged")
        assert guarded.middle.damaged, "the man in the middle did nothing: this trial shows nothing"
        assert got == want
        # Nor does damage get into what is kept for later.
        assert guarded.ask(prompt, tenant="damaged") == want


def test_damage_is_counted(guarded):
    guarded.ask(prompts(1, "counted")[0], flip_payload_bit(random.Random(1)))
    metrics = guarded.admins[1].text("/metrics")
    counted = [l for l in metrics.splitlines() if l.startswith('baton_transfer_rejected_frames_total{reason="checksum"}')]
    assert counted and float(counted[0].split()[-1]) > 0, metrics


def test_positive_control_without_checksum_noise_changes_the_answer(model, storm):
    deployment = Deployment(model, "off")
    try:
        rnd, asked = random.Random(5), prompts(60 if storm else 20, "control")
        changed = 0
        for prompt in asked:
            want = deployment.ask(prompt, tenant="undamaged")
            changed += deployment.ask(prompt, noise_block(rnd), tenant="damaged")[0] != want[0]
        assert changed >= 0.95 * len(asked), f"noise changed the ids in only {changed} of {len(asked)} trials"
    finally:
        deployment.close()
