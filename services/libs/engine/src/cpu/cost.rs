//! What a step asks of the machine, as far as the weights go.

use kernels::cpu::Linear;

use crate::cpu::CpuEngine;

/// Memory that a step reads and products that it makes, for comparison with what the machine can do. Attention, norms
/// and the gate come on top: they depend on the sequences.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StepCost {
    /// Bytes of packed weights that a step with logits reads at least once, whatever its batch.
    pub weight_bytes: u64,
    /// Multiply-adds with weights of the layers, per token.
    pub layer_macs: u64,
    /// Multiply-adds with the output layer's weights, per row of logits.
    pub head_macs: u64,
}

impl CpuEngine {
    /// What a step costs.
    pub fn cost(&self) -> StepCost {
        let macs = |l: &Linear| l.k() as u64 * l.n_out() as u64;
        let (mut weight_bytes, mut layer_macs) = (0, 0);
        for layer in &self.network.layers {
            let linears = [&layer.qkv, &layer.attention_output, &layer.gate_up, &layer.down];
            weight_bytes += linears.iter().map(|l| l.n_bytes() as u64).sum::<u64>();
            layer_macs += linears.iter().map(|l| macs(l)).sum::<u64>();
        }
        let head = &self.network.head;
        StepCost { weight_bytes: weight_bytes + head.n_bytes() as u64, layer_macs, head_macs: macs(head) }
    }
}
