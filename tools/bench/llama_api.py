"""The few functions and structures of llama.h that a measurement needs, in the two dialects it is measured in.

Structures are declared up to the last field that is set here, and padded to more than the library's size; what the
library fills in as defaults is read back and compared with what its header documents, so that a library of another
layout is refused instead of misread.
"""

import ctypes as c
import os

LOG = c.CFUNCTYPE(None, c.c_int, c.c_char_p, c.c_void_p)


class Batch(c.Structure):
    """llama_batch; the older dialect has three integers more at its end."""

    _fields_ = [
        ("n_tokens", c.c_int32),
        ("token", c.POINTER(c.c_int32)),
        ("embd", c.c_void_p),
        ("pos", c.POINTER(c.c_int32)),
        ("n_seq_id", c.POINTER(c.c_int32)),
        ("seq_id", c.POINTER(c.POINTER(c.c_int32))),
        ("logits", c.POINTER(c.c_int8)),
    ]


class OldBatch(c.Structure):
    _fields_ = Batch._fields_ + [("all_pos_0", c.c_int32), ("all_pos_1", c.c_int32), ("all_seq_id", c.c_int32)]


class ModelParams(c.Structure):
    """llama.cpp's llama_model_params, whole."""

    _fields_ = [
        ("devices", c.c_void_p),
        ("tensor_buft_overrides", c.c_void_p),
        ("n_gpu_layers", c.c_int32),
        ("split_mode", c.c_int),
        ("load_mode", c.c_int),
        ("lazy_mode", c.c_int),
        ("main_gpu", c.c_int32),
        ("tensor_split", c.c_void_p),
        ("progress_callback", c.c_void_p),
        ("progress_callback_user_data", c.c_void_p),
        ("kv_overrides", c.c_void_p),
        ("flags", c.c_bool * 6),
    ]


class ContextParams(c.Structure):
    """llama.cpp's llama_context_params, whole."""

    _fields_ = [
        ("n_ctx", c.c_uint32),
        ("n_batch", c.c_uint32),
        ("n_ubatch", c.c_uint32),
        ("n_seq_max", c.c_uint32),
        ("n_rs_seq", c.c_uint32),
        ("n_outputs_max", c.c_uint32),
        ("n_outputs_max_per_seq", c.c_uint32),
        ("n_threads", c.c_int32),
        ("n_threads_batch", c.c_int32),
        ("types", c.c_int * 4),
        ("flash_attn_type", c.c_int),
        ("rope_and_yarn", c.c_float * 6),
        ("yarn_orig_ctx", c.c_uint32),
        ("defrag_thold", c.c_float),
        ("cb_eval", c.c_void_p),
        ("cb_eval_user_data", c.c_void_p),
        ("type_k", c.c_int),
        ("type_v", c.c_int),
        ("abort_callback", c.c_void_p),
        ("abort_callback_data", c.c_void_p),
        ("embeddings", c.c_bool),
        ("offload_kqv", c.c_bool),
        ("no_perf", c.c_bool),
        ("op_offload", c.c_bool),
        ("swa_full", c.c_bool),
        ("kv_unified", c.c_bool),
        ("samplers", c.c_void_p),
        ("n_samplers", c.c_size_t),
        ("ctx_other", c.c_void_p),
    ]


class OldModelParams(c.Structure):
    """ik_llama.cpp's llama_model_params, whole."""

    _fields_ = [
        ("devices", c.c_char_p),
        ("n_gpu_layers", c.c_int32),
        ("placement", c.c_int32 * 5),
        ("kv_types", c.c_int * 2),
        ("sizes", c.c_int32 * 5),
        ("fit", c.c_bool),
        ("worst_graph_tokens", c.c_int32),
        ("kv_types_of_ends", c.c_int32 * 8),
        ("pointers", c.c_void_p * 6),
        ("vocab_only", c.c_bool),
        ("use_mmap", c.c_bool),
        ("use_mlock", c.c_bool),
        ("check_tensors", c.c_bool),
        ("repack_tensors", c.c_bool),
        ("flags", c.c_bool * 7),
    ]


class OldContextParams(c.Structure):
    """ik_llama.cpp's llama_context_params, whole."""

    _fields_ = [
        ("seed", c.c_uint32),
        ("n_ctx", c.c_uint32),
        ("n_batch", c.c_uint32),
        ("n_ubatch", c.c_uint32),
        ("n_seq_max", c.c_uint32),
        ("n_threads", c.c_uint32),
        ("n_threads_batch", c.c_uint32),
        ("max_extra_alloc", c.c_int32),
        ("worst_case_tokens", c.c_int32),
        ("types", c.c_int * 3),
        ("rope_and_yarn", c.c_float * 6),
        ("yarn_orig_ctx", c.c_uint32),
        ("defrag_thold", c.c_float),
        ("cb_eval", c.c_void_p),
        ("cb_eval_user_data", c.c_void_p),
        ("kv_types", c.c_int * 7),
        ("kv_layers", c.c_int32 * 4),
        ("logits_all", c.c_bool),
        ("embeddings", c.c_bool),
        ("offload_kqv", c.c_bool),
        ("flash_attn", c.c_bool),
        ("mla_attn", c.c_int),
        ("attn_max_batch", c.c_int),
        ("fused", c.c_bool * 6),
        ("min_experts", c.c_int),
        ("thresh_experts", c.c_float),
        ("scheduling", c.c_bool * 6),
        ("mtp_op_type", c.c_int),
        ("pointers", c.c_void_p * 4),
    ]


class Api:
    """A loaded library: defaults, a model, contexts, steps."""

    def __init__(self, path, batch, model_params, context_params):
        self.lib = c.CDLL(path, mode=c.RTLD_GLOBAL)
        self.batch, self.model_params, self.context_params = batch, model_params, context_params
        self.declare("llama_backend_init", None)
        self.declare("llama_log_set", None, LOG, c.c_void_p)
        self.declare("llama_model_default_params", model_params)
        self.declare("llama_context_default_params", context_params)
        self.declare("llama_model_load_from_file", c.c_void_p, c.c_char_p, model_params)
        self.declare("llama_init_from_model", c.c_void_p, c.c_void_p, context_params)
        self.declare("llama_batch_init", batch, c.c_int32, c.c_int32, c.c_int32)
        self.declare("llama_batch_free", None, batch)
        self.declare("llama_decode", c.c_int32, c.c_void_p, batch)
        self.declare("llama_synchronize", None, c.c_void_p)
        self.log = LOG(lambda level, text, data: None)
        if "BENCH_VERBOSE" not in os.environ:
            self.lib.llama_log_set(self.log, None)
        self.lib.llama_backend_init()
        params = self.lib.llama_context_default_params()
        found = (params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max)
        if found != (512, 2048, 512, 1):
            raise RuntimeError(f"{path}: defaults {found} are not those of the header these structures follow")

    def declare(self, name, result, *arguments):
        function = getattr(self.lib, name)
        function.restype, function.argtypes = result, arguments

    def load(self, path, **settings):
        params = self.lib.llama_model_default_params()
        params.n_gpu_layers = 0
        for name, value in settings.items():
            setattr(params, name, value)
        model = self.lib.llama_model_load_from_file(path.encode(), params)
        if not model:
            raise RuntimeError(f"cannot load {path}")
        return model

    def context(self, model, threads, **settings):
        params = self.lib.llama_context_default_params()
        params.n_threads = params.n_threads_batch = threads
        for name, value in settings.items():
            setattr(params, name, value)
        context = self.lib.llama_init_from_model(model, params)
        if not context:
            raise RuntimeError(f"no context for {settings}")
        return context

    def make_batch(self, rows):
        """`rows`: (token, position, sequence, whether logits are wanted)."""
        batch = self.lib.llama_batch_init(len(rows), 0, 1)
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, logits) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
            batch.seq_id[i][0], batch.logits[i] = sequence, int(logits)
        return batch

    def forget(self, context, sequence, length):
        """Takes everything from position `length` on out of a sequence's cache."""
        if not self.remove(context, sequence, length, -1):
            raise RuntimeError(f"cannot cut sequence {sequence} at {length}")

    def step(self, context, batch):
        status = self.lib.llama_decode(context, batch)
        if status != 0:
            raise RuntimeError(f"llama_decode says {status}")
        self.lib.llama_synchronize(context)


def llama_cpp(folder):
    """llama.cpp, with the variant of its CPU library that fits the machine."""
    c.CDLL(os.path.join(folder, "libggml-base.so"), mode=c.RTLD_GLOBAL)
    ggml = c.CDLL(os.path.join(folder, "libggml.so"), mode=c.RTLD_GLOBAL)
    ggml.ggml_backend_load_all_from_path.argtypes = [c.c_char_p]
    ggml.ggml_backend_load_all_from_path(folder.encode())
    api = Api(os.path.join(folder, "libllama.so"), Batch, ModelParams, ContextParams)
    api.declare("llama_get_memory", c.c_void_p, c.c_void_p)
    api.declare("llama_memory_seq_rm", c.c_bool, c.c_void_p, c.c_int32, c.c_int32, c.c_int32)
    api.remove = lambda context, *range: api.lib.llama_memory_seq_rm(api.lib.llama_get_memory(context), *range)
    return api


def ik_llama(folder):
    """ik_llama.cpp."""
    api = Api(os.path.join(folder, "libllama.so"), OldBatch, OldModelParams, OldContextParams)
    api.declare("llama_kv_cache_seq_rm", c.c_bool, c.c_void_p, c.c_int32, c.c_int32, c.c_int32)
    api.remove = api.lib.llama_kv_cache_seq_rm
    return api
