"""Writes tokenizers.json: small vocabularies, and what the reference implementations make of texts.

References: the Python packages `tokenizers` (Hugging Face) and `sentencepiece`, which no code of this
crate is taken from. With a GGUF file of the demo model as argument, also demo.json: the same texts
through a `tokenizers` tokenizer built from that file's vocabulary (needs the package `gguf`).

    pip install tokenizers sentencepiece gguf
    python make_tokenizers.py [MODEL.gguf]
"""

import io
import json
import sys

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TRAINING = [
    "The quick brown fox jumps over the lazy dog. It's 10:30, and we've got 1234 apples, don't we? I'll say they're ours.",
    "def main(argv):\n    for i in range(10):\n        print(i, argv[i])\n\n    return {'a': 1, \"b\": [2, 3]}\n",
    "Die Größe der Straße überrascht fünf Bäcker. L'été, où êtes-vous allés? ¿Dónde está el niño? Às vezes não.",
    "Быстрая коричневая лиса прыгает через ленивую собаку. Η γρήγορη καφέ αλεπού. 日本語のテキストです。今天天气很好，我们去公园。",
    "السلام عليكم ورحمة الله. שלום עולם. नमस्ते दुनिया। สวัสดีชาวโลก 한국어 문장입니다. 😀 👍🏽 👨‍👩‍👧",
    "HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n<html><body>Hello   world</body></html>\t\tend",
] * 4

TEXTS = [
    "", " ", "a", " a", "a ", "  leading", "trailing  ", "Hello world", "Hello, world! It's fine, isn't it?",
    "We'll they'd I'm you've SHE'S HE'LL", "the lazy dog jumps over the quick brown fox", "1", "12", "123", "1234567890",
    "a1b22c333", "3.14159 1,000,000 -5e-3", "½ ² Ⅻ ٣٤ 九", "\n", "\n\n", "a\nb\n\nc\n\n\nd", "a\r\nb\r\n\r\nc", "\t\tx\t y",
    "    four spaces", "a  b   c    d", "x \n y \n\n  z", "line  \n", "tabs\tand\nnewlines \t\n mixed", "def f(x):\n    return x**2\n",
    "for (int i = 0; i < n; ++i) { a[i] += b[i]; }", "https://example.org/path?q=1&r=2#frag", "user@example.com", "C:\\dir\\file.txt",
    "!!!???...---", "$100 + 5% = ~€95 ^_^ <tag> |x|", "(parens) [brackets] {braces}", "snake_case camelCase PascalCase SCREAMING",
    "Größe Straße über L'été où niño não", "Быстрая лиса Η αλεπού", "日本語のテキスト。今天天气很好！", "السلام عليكم שלום", "नमस्ते สวัสดี 한국어",
    "😀👍🏽👨‍👩‍👧 🇫🇷", "e\u0301 vs \u00e9, n\u0303", "\u00a0nbsp\u2003em\u3000ideographic", "zero\u200bwidth\ufeffbom", "\u0000nul\u0007bell\u007fdel",
    "\U0001f9ff rare 𐍈𝒳 ꙮ", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "thethethethe", "<|im_start|>user\nhi<|im_end|>", "<s>text</s>",
    "a<think>b</think>c", "<pad> word <strip> word <solo>x <solo> y", "▁meta▁space ▁ x", "<0x41><0x0A>", "x" * 300, " " * 50 + "x", "ab " * 100,
]

SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split(*patterns):
    steps = [pre_tokenizers.Split(Regex(p), "isolated") for p in patterns]
    return pre_tokenizers.Sequence(steps + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def digits_and_bytes():
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])


# By `tokenizer.ggml.pre`: pre-tokenizer, normalizer, ignore_merges.
PRE = {
    "gpt-2": (lambda: pre_tokenizers.ByteLevel(add_prefix_space=False), None, False),
    "smollm": (digits_and_bytes, None, False),
    "llama-bpe": (lambda: split(LLAMA3), None, True),
    "qwen2": (lambda: split(QWEN2), normalizers.NFC, False),
    "tekken": (lambda: split(TEKKEN), None, True),
    "default": (lambda: split(r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"), None, False),
}


def train_bytes():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = split(LLAMA3)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TRAINING, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(m) for m in model["merges"]]


def added(tokenizer):
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    tokenizer.add_special_tokens([AddedToken("<pad>", special=True, normalized=False, rstrip=True)])
    tokenizer.add_tokens([
        AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False),
        AddedToken("<strip>", normalized=False, lstrip=True, rstrip=True), AddedToken("<solo>", normalized=False, single_word=True),
    ])
    return tokenizer


def bos(tokenizer):
    return processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))])


def smollm(vocab, merges):
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer, tokenizer.decoder = digits_and_bytes(), decoders.ByteLevel()
    return added(tokenizer)


def llama3(vocab, merges):
    tokenizer = Tokenizer(models.BPE(vocab, merges, ignore_merges=True))
    tokenizer.pre_tokenizer, tokenizer.decoder = split(LLAMA3), decoders.ByteLevel()
    added(tokenizer).post_processor = bos(tokenizer)
    return tokenizer


def qwen(vocab, merges):
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder = normalizers.NFC(), split(QWEN2), decoders.ByteLevel()
    return added(tokenizer)


def train_spaces():
    """Characters with byte fallback, as SentencePiece's BPE vocabularies look after conversion."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bytes_ = [f"<0x{b:02X}>" for b in range(256)]
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=SPECIAL + bytes_, limit_alphabet=120, show_progress=False)
    tokenizer.train_from_iterator(TRAINING, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(m) for m in model["merges"]]


def llama2(vocab, merges):
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    added(tokenizer).post_processor = bos(tokenizer)
    return tokenizer


def mistral(vocab, merges):
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    added(tokenizer).post_processor = bos(tokenizer)
    return tokenizer


def gemma(vocab, merges):
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    added(tokenizer).post_processor = bos(tokenizer)
    return tokenizer


def case(name, tokenizer):
    """ids: control tokens are text. control_ids: they are tokens, as in a template's output."""
    tokenizer.encode_special_tokens = True
    ids = [tokenizer.encode(t, add_special_tokens=False).ids for t in TEXTS]
    with_special = tokenizer.encode("Hello", add_special_tokens=True).ids
    tokenizer.encode_special_tokens = False
    control_ids = [tokenizer.encode(t, add_special_tokens=False).ids for t in TEXTS]
    decoded = [tokenizer.decode(i) for i in control_ids]
    shown = [tokenizer.decode(i, skip_special_tokens=False) for i in control_ids]
    return {
        "name": name, "tokenizer": json.loads(tokenizer.to_str()), "ids": ids, "with_special": with_special,
        "control_ids": control_ids, "decoded": decoded, "shown": shown,
    }


def gguf_case(pre, vocab, merges):
    pre_tokenizer, normalizer, ignore_merges = PRE[pre]
    tokenizer = Tokenizer(models.BPE(vocab, merges, ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer, tokenizer.normalizer = pre_tokenizer(), normalizer and normalizer()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.encode_special_tokens = True
    return {"pre": pre, "ids": [tokenizer.encode(t, add_special_tokens=False).ids for t in TEXTS]}


def scored():
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TRAINING), model_writer=model, vocab_size=800, model_type="bpe", byte_fallback=True,
        character_coverage=0.98, normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=True,
        control_symbols=["<|im_start|>", "<|im_end|>"], user_defined_symbols=["<think>", "</think>"],
        allow_whitespace_only_pieces=True, split_digits=True, minloglevel=2)
    sp = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    n = sp.get_piece_size()
    kind = lambda i: 2 if sp.is_unknown(i) else 3 if sp.is_control(i) else 6 if sp.is_byte(i) else 1
    kinds = [4 if sp.id_to_piece(i) in ("<think>", "</think>") else kind(i) for i in range(n)]
    # What SentencePiece itself refuses to keep apart: NUL ends its strings.
    texts = [t for t in TEXTS if "\0" not in t and "▁" not in t]
    ids = [sp.encode(t) for t in texts]
    return {
        "tokens": [sp.id_to_piece(i) for i in range(n)], "scores": [sp.get_score(i) for i in range(n)], "kinds": kinds,
        "bos": sp.bos_id(), "eos": sp.eos_id(), "unknown": sp.unk_id(), "texts": texts, "ids": ids,
        "decoded": [sp.decode(i) for i in ids],
    }


def demo(path):
    from gguf import GGUFReader

    fields = GGUFReader(path).fields
    tokens, kinds = fields["tokenizer.ggml.tokens"].contents(), fields["tokenizer.ggml.token_type"].contents()
    merges = [tuple(m.split(" ")) for m in fields["tokenizer.ggml.merges"].contents()]
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer, tokenizer.decoder = digits_and_bytes(), decoders.ByteLevel()
    tokenizer.add_special_tokens([t for t, k in zip(tokens, kinds) if k == 3])
    tokenizer.encode_special_tokens = True
    return {"texts": TEXTS, "ids": [tokenizer.encode(t, add_special_tokens=False).ids for t in TEXTS]}


def dump(name, value):
    with open(name, "w", encoding="utf-8") as f:
        json.dump(value, f, ensure_ascii=False, separators=(",", ":"))
        f.write("\n")


def main():
    vocab, merges = train_bytes()
    spaces = train_spaces()
    dump("tokenizers.json", {
        "texts": TEXTS,
        "hugging_face": [
            case("smollm", smollm(vocab, merges)), case("llama3", llama3(vocab, merges)), case("qwen", qwen(vocab, merges)),
            case("llama2", llama2(*spaces)), case("mistral", mistral(*spaces)), case("gemma", gemma(*spaces)),
        ],
        "gguf_ranked": {
            "tokens": sorted(vocab, key=vocab.get), "merges": [" ".join(m) for m in merges], "n_special": len(SPECIAL),
            "cases": [gguf_case(pre, vocab, merges) for pre in PRE],
        },
        "gguf_scored": scored(),
    })
    if len(sys.argv) > 1:
        dump("demo.json", demo(sys.argv[1]))


main()
