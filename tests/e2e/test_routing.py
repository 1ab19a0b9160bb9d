"""How a router chooses workers, from outside: the policy's setting, and the reasons it gives."""

import json
import subprocess
import time

from procs import Cluster, required_env

FLAGS = ["--engine", "sim", "--sim-speedup", "inf", "--prefill", "2", "--decode", "2"]


def ask(cluster, prompt, **more):
    body = dict(model=cluster.model, prompt=prompt, max_tokens=4, temperature=0, return_token_ids=True, **more)
    return cluster.post("/v1/completions", body)


class Told(Cluster):
    def router_hears(self, n_blocks):
        line = f'baton_router_index_blocks{{source="events"}} {n_blocks}\n'
        deadline = time.monotonic() + 10
        while line not in self.admin.text("/metrics"):
            assert time.monotonic() < deadline, self.admin.text("/metrics")
            time.sleep(0.05)
        # The metric counts distinct blocks: the pair's other worker tells of the same ones.
        time.sleep(0.3)


def explain(cluster, request, *flags):
    return subprocess.run([required_env("BATON_BIN"), "explain", request, "--admin", cluster.admin.url, *flags],
                          capture_output=True, text=True, timeout=30)


def test_a_conversation_stays_where_its_beginning_is(model):
    with Told("up", "--model", model, *FLAGS) as c:
        for conversation in range(4):
            pairs = set()
            for turn in range(3):
                answer = ask(c, [1000 + conversation] * (64 + 32 * turn))
                said = explain(c, answer["id"], "--json")
                assert said.returncode == 0, said
                (placement,) = json.loads(said.stdout)["placements"]
                assert placement["policy"] == "cost" and placement["prompt_tokens"] == 64 + 32 * turn
                best = placement["decodes"][0]
                assert best["worker"] == placement["decode"]
                assert abs(best["score"] - sum(t["value"] for t in best["terms"])) < 1e-9
                assert (best["cached_tokens"] > 0) == (turn > 0)
                assert {p["worker"].split("@")[0] for p in placement["prefills"]} == {"prefill-0", "prefill-1"}
                pairs.add((placement["decode"], placement["prefill"]["worker"]))
                # What the workers tell of their caches comes behind the answer: four blocks, and two more each turn.
                c.router_hears(8 * conversation + 4 + 2 * turn)
            assert len(pairs) == 1, pairs
        table = explain(c, answer["id"])
        for word in ["policy cost", "decode-0", "decode-1", "prefill-0", "prefill-1", "queue", "transfer"]:
            assert word in table.stdout, table
        unknown = explain(c, "0" * 32)
        assert unknown.returncode != 0 and "nothing is known" in unknown.stderr


def test_short_prompts_stay_on_decode_and_answer_the_same(model):
    with Cluster("up", "--model", model, *FLAGS) as split:
        want = [ask(split, [7] * n)["choices"][0]["token_ids"] for n in (20, 200)]
    with Cluster("up", "--model", model, *FLAGS, "--policy", "round-robin", "--local-prefill-tokens", "100") as c:
        answers = [ask(c, [7] * n) for n in (20, 200)]
        assert [a["choices"][0]["token_ids"] for a in answers] == want
        placed = [json.loads(explain(c, a["id"], "--json").stdout)["placements"][0] for a in answers]
        assert placed[0]["prefill"] == {"none": "local"} and "worker" in placed[1]["prefill"]
        assert placed[0]["policy"] == "round-robin"
        assert 'baton_router_disaggregation_skipped_total{reason="local"} 1' in c.admin.text("/metrics")
        c.wait_at_rest(1.0)


def test_an_unknown_policy_is_refused(model):
    run = subprocess.run([required_env("BATON_BIN"), "up", "--model", model, "--policy", "best"],
                         capture_output=True, text=True, timeout=30)
    assert run.returncode != 0 and "least-loaded" in run.stderr
