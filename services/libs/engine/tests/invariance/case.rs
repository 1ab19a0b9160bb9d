//! One random case: a model, its settings, sequences, and how they are to be computed.

use engine::Compute;

use crate::engines::{Engines, Setting};
use crate::play::{Difference, Play, Player};
use crate::random::Random;
use crate::reference::{Expected, compute};
use crate::sabotage::Sabotage;

/// One case in so many has the large model.
const LARGE_ONE_IN: usize = 250;

/// What came of a case.
pub(crate) struct Outcome {
    /// In words.
    pub(crate) about: String,
    /// Whether something was broken on purpose.
    pub(crate) sabotaged: bool,
    /// The first difference from the plain way.
    pub(crate) difference: Option<Difference>,
}

pub(crate) fn run(engines: &mut Engines, seed: u64, sabotage: Option<Sabotage>) -> Outcome {
    let mut random = Random::new(seed);
    let large = random.one_in(LARGE_ONE_IN) && sabotage.is_none();
    let model = draw_model(engines, large, &mut random);
    let large = engines.models[model].large;
    let mode = *random.pick(&[Compute::F32, Compute::Auto]);
    let block_tokens = *random.pick(&[16, 16, 16, 8, 5]);
    let block_tokens = if large { 16 } else { block_tokens };
    let plain = match (sabotage, mode) {
        (Some(Sabotage::Compute), Compute::F32) => Compute::Auto,
        (Some(Sabotage::Compute), Compute::Auto) => Compute::F32,
        _ => mode,
    };
    let reference = engines.setting(model, plain, block_tokens, &mut random);
    let expected = expected(engines, &reference, large, &mut random);
    let settings = [(); 2].map(|()| engines.setting(model, mode, block_tokens, &mut random));
    let about = format!(
        "{}, {} tokens, plainly on {reference:?}, then on {settings:?}",
        engines.models[model].path.display(),
        expected.iter().map(|e| e.tokens.len().to_string()).collect::<Vec<_>>().join(" + "),
    );
    let players = settings.clone().map(|s| Player::new(engines.take(&s)));
    let mut play = Play::new(players, &expected, random, sabotage);
    let difference = play.run();
    let sabotaged = play.sabotaged();
    for (setting, player) in settings.into_iter().zip(play.end()) {
        engines.put(setting, player.engine);
    }
    Outcome { about, sabotaged, difference }
}

fn draw_model(engines: &Engines, large: bool, random: &mut Random) -> usize {
    let fit = |i: &usize| engines.models[*i].large == large;
    let fitting: Vec<_> = (0..engines.models.len()).filter(fit).collect();
    if fitting.is_empty() { random.below(engines.models.len()) } else { *random.pick(&fitting) }
}

/// Some sequences, of which later ones may begin as earlier ones do, computed plainly.
fn expected(engines: &mut Engines, setting: &Setting, large: bool, random: &mut Random) -> Vec<Expected> {
    let mut engine = engines.take(setting);
    let (n_vocab, max_context) = (engine.model().n_vocab, engine.model().max_context);
    // Blocks are shared only by sequences of the same kind.
    let max_tokens = random.between(152.min(max_context), max_context) as u32;
    let mut all: Vec<Expected> = Vec::new();
    for _ in 0..random.between(1, if large { 2 } else { 4 }) {
        let longest = if large { 20 } else { *random.pick(&[6, 40, 40, 140]) };
        let n_prompt = random.between(1, longest.min(max_context * 3 / 4));
        let n_generated = random.between(0, longest.min(12).min(max_context / 4));
        let mut prompt: Vec<_> = (0..n_prompt).map(|_| random.below(n_vocab) as u32).collect();
        if !all.is_empty() && random.one_in(2) {
            let other = &random.pick(&all).tokens;
            let n = random.between(0, other.len().min(n_prompt));
            prompt[..n].copy_from_slice(&other[..n]);
        }
        all.push(compute(&mut *engine, &prompt, n_generated, max_tokens, random.one_in(2)));
    }
    engines.put(setting.clone(), engine);
    all
}
