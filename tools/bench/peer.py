"""A measured opponent as a process: `peer.py llama.cpp|ik_llama.cpp FOLDER MODEL THREADS [NAME=VALUE...]`.

Reads lines `prefill TOKENS` and `decode CONTEXT BATCH STEPS` and answers each with `{"tokens_per_s": X}`, as
`baton bench engine --lines` does. Settings after the threads go to the model's (`model.NAME=VALUE`) or the context's
parameters. Loading, contexts and preparation lie outside the timings. Each kind of decode case has a context of its own,
filled once: what a measurement added is taken off again.
"""

import json
import os
import sys
import time

import llama_api

SEQUENCES = 32


class Peer:
    def __init__(self, kind, folder, model, threads, settings):
        of_model = {name[6:]: value for name, value in settings.items() if name.startswith("model.")}
        of_context = {name: value for name, value in settings.items() if not name.startswith("model.")}
        if kind == "llama.cpp":
            self.api = llama_api.llama_cpp(folder)
        else:
            self.api = llama_api.ik_llama(folder)
        common = {"n_ctx": 4096, "n_batch": 2048, "n_ubatch": 512, "n_seq_max": SEQUENCES}
        model = self.api.load(model, **of_model)
        self.new_context = lambda: self.api.context(model, threads, **common | of_context)
        self.contexts = {}

    def prompt(self, length, sequence=0):
        rows = [(token(i), i, sequence, i == length - 1) for i in range(length)]
        return self.api.make_batch(rows)

    def context(self, length, sequences):
        """One in which so many sequences hold so many tokens."""
        if (length, sequences) not in self.contexts:
            context = self.contexts[length, sequences] = self.new_context()
            if length:
                self.time(context, [self.prompt(length, sequence) for sequence in range(sequences)])
        context = self.contexts[length, sequences]
        for sequence in range(sequences):
            self.api.forget(context, sequence, length)
        return context

    def prefill(self, length):
        context = self.context(0, 1)
        return length / self.time(context, [self.prompt(length)])

    def decode(self, length, sequences, steps):
        context = self.context(length, sequences)
        batches = [
            self.api.make_batch([(token(i), length + i, s, True) for s in range(sequences)]) for i in range(steps)
        ]
        return sequences * steps / self.time(context, batches)

    def time(self, context, batches):
        start = time.perf_counter()
        for batch in batches:
            self.api.step(context, batch)
        seconds = time.perf_counter() - start
        for batch in batches:
            self.api.lib.llama_batch_free(batch)
        return seconds


def token(i):
    return i * 7919 % 40000 + 100


def main():
    # Answers alone go to standard output: the libraries print there, too.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    kind, folder, model, threads, *settings = sys.argv[1:]
    pairs = (setting.split("=") for setting in settings)
    peer = Peer(kind, folder, model, int(threads), {name: int(value) for name, value in pairs})
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        word, *numbers = line.split()
        try:
            speed = {"prefill": peer.prefill, "decode": peer.decode}[word](*map(int, numbers))
            answer = {"tokens_per_s": speed}
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            answer = {"error": f"{line.strip()}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
