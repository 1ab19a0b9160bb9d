"""The file formats of the goldens, written from their descriptions: bfloat16, block formats, safetensors, GGUF.

Only numpy and the standard library; nothing here shares code with the Rust readers it tests.
"""
import json
import struct

import numpy as np

# ---- block formats: name -> (numbers per block, bytes per block, GGUF type number)
FORMATS = {
    "F32": (1, 4, 0), "F16": (1, 2, 1), "BF16": (1, 2, 30),
    "Q8_0": (32, 34, 8), "Q4_0": (32, 18, 2), "Q4_1": (32, 20, 3),
    "Q4_K": (256, 144, 12), "Q5_K": (256, 176, 13), "Q6_K": (256, 210, 14),
}


def to_bf16(x):
    """float32 -> the 16 bits of the nearest bfloat16 (ties to even)."""
    u = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def half(blocks, at):
    """The f16 at byte `at` of every block, as float32 [n, 1]."""
    return np.ascontiguousarray(blocks[:, at:at + 2]).view(np.float16).astype(np.float32)


def nibbles(b):
    """[n, k] bytes -> low halves, high halves."""
    return b & 15, b >> 4


def scales_k4(s):
    """[n, 12] packed bytes -> eight 6-bit scales and eight 6-bit minima, each [n, 8]."""
    a, b, c = s[:, 0:4], s[:, 4:8], s[:, 8:12]
    return (np.concatenate([a & 63, (c & 15) | (a >> 6 << 4)], 1),
            np.concatenate([b & 63, (c >> 4) | (b >> 6 << 4)], 1))


def dequantize(fmt, raw):
    """Bytes of whole blocks -> float32, one operation at a time in float32 as ggml does."""
    f = np.float32
    if fmt == "F32":
        return np.frombuffer(raw, f)
    if fmt == "F16":
        return np.frombuffer(raw, np.float16).astype(f)
    if fmt == "BF16":
        return from_bf16(np.frombuffer(raw, np.uint16))
    b = np.frombuffer(raw, np.uint8).reshape(-1, FORMATS[fmt][1])
    n = len(b)
    if fmt == "Q8_0":
        y = half(b, 0) * b[:, 2:].view(np.int8).astype(f)
    elif fmt == "Q4_0":
        lo, hi = nibbles(b[:, 2:])
        y = half(b, 0) * (np.concatenate([lo, hi], 1).astype(f) - f(8))
    elif fmt == "Q4_1":
        lo, hi = nibbles(b[:, 4:])
        y = half(b, 0) * np.concatenate([lo, hi], 1).astype(f) + half(b, 2)
    elif fmt in ("Q4_K", "Q5_K"):
        sc, mn = scales_k4(b[:, 4:16])
        q = np.stack(nibbles(b[:, -128:].reshape(n, 4, 32)), 2).reshape(n, 8, 32)
        if fmt == "Q5_K":
            high = (b[:, 16:48].reshape(n, 1, 32) >> np.arange(8, dtype=np.uint8).reshape(1, 8, 1)) & 1
            q = q | high << 4
        y = (half(b, 0) * sc.astype(f))[:, :, None] * q.astype(f) - (half(b, 2) * mn.astype(f))[:, :, None]
    elif fmt == "Q6_K":
        low = np.stack(nibbles(b[:, :128].reshape(n, 2, 2, 32)), 2).reshape(n, 2, 4, 32)
        high = (b[:, 128:192].reshape(n, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)) & 3
        q = (low | high << 4).reshape(n, 16, 16).astype(f) - f(32)
        y = (half(b, 208) * b[:, 192:208].view(np.int8).astype(f))[:, :, None] * q
    return np.ascontiguousarray(y, f).reshape(-1)


def random_blocks(fmt, n, rng):
    """Blocks of random bytes whose scales are ordinary numbers."""
    b = rng.integers(0, 256, (n, FORMATS[fmt][1]), dtype=np.uint8)
    places = {"Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}[fmt]
    for at in places:
        b[:, at:at + 2] = rng.normal(0, 0.05, (n, 1)).astype(np.float16).view(np.uint8)
    return b.tobytes()


def scaled_blocks(fmt, shape, std, rng):
    """Random blocks for a weight matrix: any bit pattern of levels, scales such that the numbers have about this spread."""
    per, size, _ = FORMATS[fmt]
    n = int(np.prod(shape)) // per
    b = np.frombuffer(random_blocks(fmt, n, rng), np.uint8).reshape(n, size).copy()

    def put(at, value):
        b[:, at:at + 2] = np.full((n, 1), value, np.float16).view(np.uint8)
    if fmt == "Q8_0":
        put(0, std / 73)
    elif fmt == "Q4_0":
        put(0, std / 4.6)
    elif fmt == "Q4_1":
        put(0, std / 4.6), put(2, -7.5 * std / 4.6)
    elif fmt in ("Q4_K", "Q5_K"):
        # scale and minimum of a group close to one another, so that groups are centred
        top = 15 if fmt == "Q4_K" else 31
        sc = rng.integers(24, 64, (n, 8), dtype=np.uint8)
        mn = np.clip(sc.astype(int) + rng.integers(-3, 4, (n, 8)), 0, 63).astype(np.uint8)
        b[:, 4:8] = (sc[:, :4]) | (sc[:, 4:] >> 4 << 6)
        b[:, 8:12] = (mn[:, :4]) | (mn[:, 4:] >> 4 << 6)
        b[:, 12:16] = (sc[:, 4:] & 15) | (mn[:, 4:] << 4)
        d = std / (44 * top * 0.29)
        put(0, d), put(2, d * top / 2)
    elif fmt == "Q6_K":
        put(208, std / (73 * 18.5))
    return b.tobytes()


# ---- safetensors
NUMPY = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}


def write_safetensors(path, tensors, metadata=None):
    """tensors: name -> (dtype name, array whose bytes are stored)."""
    header, at = {"__metadata__": metadata} if metadata else {}, 0
    for name, (dtype, a) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(a.shape), "data_offsets": [at, at + a.nbytes]}
        at += a.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(a.tobytes() for _, a in tensors.values()))


def read_safetensors(path):
    """name -> float32 array."""
    raw = path.read_bytes()
    n = struct.unpack_from("<Q", raw)[0]
    out = {}
    for name, t in json.loads(raw[8:8 + n]).items():
        if name != "__metadata__":
            a, z = t["data_offsets"]
            out[name] = dequantize(t["dtype"], raw[8 + n + a:8 + n + z]).reshape(t["shape"])
    return out


# ---- GGUF, version 3
def _string(s):
    s = s.encode()
    return struct.pack("<Q", len(s)) + s


def _value(v):
    """Type number and bytes. Integers are u32, lists of integers i32."""
    if isinstance(v, bool):
        return 7, struct.pack("<B", v)
    if isinstance(v, int):
        return 4, struct.pack("<I", v)
    if isinstance(v, float):
        return 6, struct.pack("<f", v)
    if isinstance(v, str):
        return 8, _string(v)
    kind, item = {str: (8, _string), int: (5, lambda i: struct.pack("<i", i)),
                  float: (6, lambda x: struct.pack("<f", x))}[type(v[0])]
    return 9, struct.pack("<IQ", kind, len(v)) + b"".join(item(i) for i in v)


def write_gguf(path, metadata, tensors, alignment=32):
    """tensors: name -> (format name, row-major shape, bytes)."""
    out = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
    for key, value in metadata.items():
        kind, raw = _value(value)
        out += _string(key) + struct.pack("<I", kind) + raw
    at = 0
    for name, (fmt, shape, raw) in tensors.items():
        assert len(raw) == int(np.prod(shape)) // FORMATS[fmt][0] * FORMATS[fmt][1], name
        dims = list(reversed(shape))
        out += _string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, FORMATS[fmt][2], at)
        at += len(raw) + -len(raw) % alignment
    for _, _, raw in tensors.values():
        out += b"\0" * (-len(out) % alignment) + raw
    path.write_bytes(out)
