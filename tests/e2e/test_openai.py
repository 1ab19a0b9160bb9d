"""The openai Python client, unmodified, against `baton up`."""

import openai
import pytest


@pytest.fixture(scope="module")
def client(cluster):
    with openai.OpenAI(base_url=cluster.url + "/v1", api_key="unused", max_retries=0) as c:
        yield c


ASK = [{"role": "user", "content": "What is the capital of France?"}]


def test_models(client, cluster):
    models = client.models.list().data
    assert [m.id for m in models] == [cluster.model]
    assert client.models.retrieve(cluster.model).id == cluster.model


def test_chat(client, cluster):
    answer = client.chat.completions.create(model=cluster.model, messages=ASK, temperature=0, max_tokens=32)
    choice = answer.choices[0]
    assert "Paris" in choice.message.content and choice.message.role == "assistant"
    assert choice.finish_reason == "stop"
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-")
    usage = answer.usage
    assert usage.prompt_tokens == 37 and usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.completion_tokens == 8


def test_chat_stream_equals_whole(client, cluster):
    ask = dict(model=cluster.model, messages=ASK, temperature=0, max_tokens=32)
    whole = client.chat.completions.create(**ask)
    chunks = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert len({c.id for c in chunks}) == 1


def test_stream_without_usage_has_none(client, cluster):
    chunks = list(client.chat.completions.create(model=cluster.model, messages=ASK, max_tokens=4, stream=True))
    assert all(c.choices and c.usage is None for c in chunks)


def test_logprobs(client, cluster):
    answer = client.chat.completions.create(
        model=cluster.model, messages=ASK, temperature=0, max_tokens=5, logprobs=True, top_logprobs=3
    )
    content = answer.choices[0].logprobs.content
    assert len(content) == 5
    for entry in content:
        assert entry.logprob <= 0 and len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].token == entry.token and entry.top_logprobs[0].logprob == entry.logprob
        assert bytes(entry.bytes).decode(errors="replace") == entry.token
        assert [t.logprob for t in entry.top_logprobs] == sorted((t.logprob for t in entry.top_logprobs), reverse=True)
    assert "".join(e.token for e in content) == answer.choices[0].message.content


def test_n_choices_with_seed(client, cluster):
    ask = dict(model=cluster.model, messages=[{"role": "user", "content": "Tell me a story."}], max_tokens=16)
    first = client.chat.completions.create(**ask, n=2, seed=7, temperature=1.0)
    again = client.chat.completions.create(**ask, n=2, seed=7, temperature=1.0)
    other = client.chat.completions.create(**ask, n=2, seed=8, temperature=1.0)
    texts = lambda answer: [c.message.content for c in sorted(answer.choices, key=lambda c: c.index)]
    assert texts(first) == texts(again) != texts(other)
    assert texts(first)[0] != texts(first)[1]
    assert first.usage.completion_tokens == 32


def test_n_choices_stream(client, cluster):
    ask = dict(model=cluster.model, messages=ASK, max_tokens=8, n=2, seed=3, temperature=1.0)
    whole = {c.index: c.message.content for c in client.chat.completions.create(**ask).choices}
    got, finished = {0: "", 1: ""}, set()
    for chunk in client.chat.completions.create(**ask, stream=True):
        for choice in chunk.choices:
            got[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                finished.add(choice.index)
    assert got == whole and finished == {0, 1}


def test_stop_string(client, cluster):
    ask = dict(model=cluster.model, messages=ASK, temperature=0, max_tokens=32)
    answer = client.chat.completions.create(**ask, stop=[" Paris"])
    assert answer.choices[0].message.content == "The capital of France is"
    assert answer.choices[0].finish_reason == "stop"
    streamed = client.chat.completions.create(**ask, stop=" Par", stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in streamed) == "The capital of France is"


def test_length(client, cluster):
    answer = client.chat.completions.create(model=cluster.model, messages=ASK, temperature=0, max_tokens=3)
    assert answer.choices[0].finish_reason == "length" and answer.usage.completion_tokens == 3
    one = client.chat.completions.create(model=cluster.model, messages=ASK, temperature=0, max_completion_tokens=1)
    assert one.choices[0].finish_reason == "length" and one.choices[0].message.content == "The"


def test_completions(client, cluster):
    ask = dict(model=cluster.model, prompt="The capital of France is", temperature=0, max_tokens=6)
    answer = client.completions.create(**ask, logprobs=2)
    choice = answer.choices[0]
    assert "Paris" in choice.text and answer.object == "text_completion"
    lp = choice.logprobs
    assert len(lp.tokens) == len(lp.token_logprobs) == len(lp.top_logprobs) == len(lp.text_offset) == 6
    assert "".join(lp.tokens) == choice.text
    streamed = "".join(c.choices[0].text for c in client.completions.create(**ask, stream=True))
    assert streamed == choice.text


def test_completions_many_prompts(client, cluster):
    ask = dict(model=cluster.model, temperature=0, max_tokens=4)
    alone = [client.completions.create(**ask, prompt=p).choices[0].text for p in ("One two", "Red green")]
    together = client.completions.create(**ask, prompt=["One two", "Red green"])
    assert [c.text for c in sorted(together.choices, key=lambda c: c.index)] == alone


def test_token_ids_in_and_out(client, cluster):
    ids = cluster.post("/tokenize", {"model": cluster.model, "prompt": "The capital of France is"})["tokens"]
    by_ids = client.completions.create(
        model=cluster.model, prompt=ids, temperature=0, max_tokens=6, extra_body={"return_token_ids": True}
    )
    by_text = client.completions.create(
        model=cluster.model, prompt="The capital of France is", temperature=0, max_tokens=6
    )
    assert by_ids.choices[0].text == by_text.choices[0].text
    out = by_ids.choices[0].token_ids
    assert len(out) == 6
    assert cluster.post("/detokenize", {"model": cluster.model, "tokens": out})["prompt"] == by_ids.choices[0].text


@pytest.mark.parametrize(
    "change, error, param",
    [
        (dict(model="no-such-model"), openai.NotFoundError, "model"),
        (dict(messages=[]), openai.BadRequestError, "messages"),
        (dict(temperature=-1), openai.BadRequestError, "temperature"),
        (dict(top_p=0), openai.BadRequestError, "top_p"),
        (dict(n=10**9), openai.BadRequestError, "n"),
        (dict(max_tokens=0), openai.BadRequestError, "max_tokens"),
    ],
)
def test_errors_are_typed(client, cluster, change, error, param):
    with pytest.raises(error) as caught:
        client.chat.completions.create(**{**dict(model=cluster.model, messages=ASK, max_tokens=4), **change})
    assert caught.value.param == param and caught.value.body["message"]
