//! From model files to packed weights.

use std::sync::Arc;

use kernels::Isa;
use kernels::cpu::{Cpu, Heads, KvFormat, Linear, Matrix};
use kernels::kv::KvArena;
use types::{Compatibility, KvElement, KvGeometry, LayerKv, LayerKvKind, PROTOCOL_MAX, PROTOCOL_MIN};

use crate::cpu::embedding::Embedding;
use crate::cpu::scratch::Scratch;
use crate::cpu::{CpuEngine, Layer, Network};
use crate::model::{LayerConfig, ModelConfig, ModelFiles, Role, Rope, Tensor, Weights};
use crate::{Compute, EngineConfig, LoadError, LoadProgress, ModelInfo, ModelSource};

/// Most tokens of a block.
const BLOCK_TOKENS_MAX: usize = 1 << 12;

/// Loads a model.
pub(super) fn load(
    source: &ModelSource,
    settings: &EngineConfig,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<CpuEngine, LoadError> {
    validate(settings)?;
    let (files, config) = ModelFiles::open(source)?;
    let format = match settings.compute {
        Compute::F32 => KvFormat::F32,
        Compute::Auto => KvFormat::F16,
    };
    let ModelConfig { n_q, n_kv, head_dim, .. } = config;
    let heads = Heads { n_q, n_kv, head_dim, format, block_tokens: settings.block_tokens };
    let cells = vec![heads.cell_shape(); config.layers.len()];
    let isa = settings.isa.unwrap_or_else(Isa::detect);
    let cpu =
        if settings.cores.is_empty() { Cpu::new(settings.threads, isa) } else { Cpu::pinned(&settings.cores, isa)? };
    let weights = Weights::new(&files, &config);
    let total = files.tensor_bytes();
    let mut loader = Loader { cpu, compute: settings.compute, weights, done: 0, total, progress };
    // Reading every byte for the digest goes on beside the packing.
    let (network, digest) = std::thread::scope(|scope| {
        let digest = scope.spawn(|| files.digest());
        let network = loader.network(&config, heads)?;
        Ok::<_, LoadError>((network, digest.join().expect("hashing does not panic")))
    })?;
    let Loader { cpu, weights, .. } = loader;
    let quantization = weights.formats();
    weights.finish()?;
    let arena = Arc::new(KvArena::with_cells(&cells, settings.kv_blocks, settings.block_tokens)?);
    let model = Arc::new(model_info(&config, settings, &heads, &network, &digest, quantization, cpu.isa()));
    Ok(CpuEngine { model, arena, cpu, network, scratch: Scratch::default() })
}

fn validate(settings: &EngineConfig) -> Result<(), LoadError> {
    let check = |field, value: usize, max: usize| {
        let reason = format!("is {value}, must be between 1 and {max}");
        if value == 0 || value > max { Err(LoadError::Settings { field, reason }) } else { Ok(()) }
    };
    check("threads", settings.threads, kernels::pool::THREADS_MAX)?;
    let n_cores = settings.cores.len();
    if n_cores > 0 && n_cores != settings.threads {
        let reason = format!("{n_cores} for {} threads, must be one each", settings.threads);
        return Err(LoadError::Settings { field: "cores", reason });
    }
    check("kv_blocks", settings.kv_blocks, 1 << 30)?;
    check("block_tokens", settings.block_tokens, BLOCK_TOKENS_MAX)
}

struct Loader<'a> {
    cpu: Cpu,
    compute: Compute,
    weights: Weights<'a>,
    done: u64,
    total: u64,
    progress: &'a mut dyn FnMut(LoadProgress),
}

impl Loader<'_> {
    fn network(&mut self, config: &ModelConfig, heads: Heads) -> Result<Network, LoadError> {
        let embedding = match config.storage.tied {
            true => Embedding::Tied,
            false => Embedding::stored(&self.weights.matrix(Role::Embedding)?),
        };
        let layers = (0..config.layers.len()).map(|l| self.layer(config, l)).collect::<Result<_, _>>()?;
        let final_norm = self.weights.norm(Role::FinalNorm)?;
        let head = self.linear(&[if config.storage.tied { Role::Embedding } else { Role::Head }])?;
        Ok(Network {
            heads,
            ropes: config.ropes.clone(),
            norm_eps: config.norm_eps,
            dim: config.dim,
            ff_dim: config.ff_dim,
            n_vocab: config.n_vocab,
            activation: config.activation,
            embedding_scale: config.embedding_scale,
            score_scale: config.score_scale,
            score_cap: config.score_cap,
            logit_cap: config.logit_cap,
            embedding,
            layers,
            final_norm,
            head,
        })
    }

    fn layer(&mut self, config: &ModelConfig, l: usize) -> Result<Layer, LoadError> {
        let LayerConfig { window, rope } = config.layers[l];
        let (before, after, heads) = (config.norms.before(), config.norms.after(), config.head_norm.is_some());
        Ok(Layer {
            window,
            rope,
            attention_norm: self.norm(before, Role::AttentionNorm(l))?,
            qkv: self.linear(&[Role::Query(l), Role::Key(l), Role::Value(l)])?,
            query_norm: self.norm(heads, Role::QueryNorm(l))?,
            key_norm: self.norm(heads, Role::KeyNorm(l))?,
            attention_output: self.linear(&[Role::AttentionOutput(l)])?,
            attention_post_norm: self.norm(after, Role::AttentionPostNorm(l))?,
            feed_forward_norm: self.norm(before, Role::FeedForwardNorm(l))?,
            gate_up: self.linear(&[Role::Gate(l), Role::Up(l)])?,
            down: self.linear(&[Role::Down(l)])?,
            feed_forward_post_norm: self.norm(after, Role::FeedForwardPostNorm(l))?,
        })
    }

    /// The norm of that role, if the model has one there.
    fn norm(&self, there: bool, role: Role) -> Result<Option<Vec<f32>>, LoadError> {
        there.then(|| self.weights.norm(role)).transpose()
    }

    /// Matrices side by side, with their biases if any of them has some.
    fn linear(&mut self, roles: &[Role]) -> Result<Linear, LoadError> {
        let mut parts = Vec::with_capacity(roles.len());
        let mut bias = Vec::new();
        let mut biased = false;
        for &role in roles {
            let tensor = self.weights.matrix(role)?;
            parts.push(self.pack(&tensor));
            self.weights.release();
            // A part without biases has zero ones.
            let part = self.weights.bias(role)?;
            biased |= part.is_some();
            bias.extend(part.unwrap_or_else(|| vec![0.0; tensor.n_out]));
            self.done += tensor.data().len() as u64;
            (self.progress)(LoadProgress { done_bytes: self.done.min(self.total), total_bytes: self.total });
        }
        Ok(Linear::new(parts, biased.then_some(bias)))
    }

    fn pack(&mut self, tensor: &Tensor<'_>) -> Matrix {
        let Tensor { format, n_out, k, .. } = *tensor;
        let (pool, row) = (self.cpu.pool(), |row| tensor.row(row));
        let integer = match self.compute {
            Compute::F32 => None,
            Compute::Auto => Matrix::pack_integer(pool, format, n_out, k, &row),
        };
        integer
            .or_else(|| Matrix::pack_stored(pool, format, n_out, k, &row))
            .unwrap_or_else(|| Matrix::pack(pool, n_out, k, &|row, out| tensor.read_row(row, out)))
    }
}

fn model_info(
    config: &ModelConfig,
    settings: &EngineConfig,
    heads: &Heads,
    network: &Network,
    file_digest: &str,
    quantization: String,
    isa: Isa,
) -> ModelInfo {
    let kind = LayerKvKind::Grouped { n_kv_heads: heads.n_kv as u32, head_dim: heads.head_dim as u32 };
    let element = match heads.format {
        KvFormat::F32 => KvElement::F32,
        KvFormat::F16 => KvElement::F16,
    };
    // Windows are below 2^30.
    let layer_kv = |layer: &LayerConfig| LayerKv { kind, window: layer.window.map(|w| w as u32) };
    let identity = format!("{file_digest} {}", config.describe());
    let layer_bytes = |l: &Layer| {
        let linears = [&l.qkv, &l.attention_output, &l.gate_up, &l.down];
        linears.iter().map(|l| l.n_bytes()).sum::<usize>()
    };
    let weight_bytes = network.layers.iter().map(layer_bytes).sum::<usize>();
    ModelInfo {
        name: settings.name.clone(),
        architecture: config.architecture.to_owned(),
        n_vocab: config.n_vocab,
        max_context: config.max_context,
        bos: config.bos,
        eos: config.eos.clone(),
        compatibility: Compatibility {
            protocol: (PROTOCOL_MIN, PROTOCOL_MAX),
            model_digest: blake3::hash(identity.as_bytes()).to_hex().to_string(),
            model_revision: String::new(),
            geometry: KvGeometry {
                block_tokens: heads.block_tokens as u32,
                element,
                layers: config.layers.iter().map(layer_kv).collect(),
            },
            rope: config.describe_rope(),
            attention: config.describe_attention(),
            quantization,
            adapters: Vec::new(),
            drafter: String::new(),
            numerics: format!("{}/{}", kernels::NUMERICS, settings.compute.as_str()),
        },
        rope_switch: config.ropes.iter().find_map(Rope::original_context),
        weight_bytes: (weight_bytes + network.embedding.n_bytes() + network.head.n_bytes()) as u64,
        device: format!("cpu/{isa}"),
    }
}
