//! The choice of a pair of workers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use types::{RequestId, Role, WorkerRef};

use crate::explain::{CANDIDATES_MAX, Candidate, Explanation, Partner};
use crate::policy::{Asked, Field, View, draw};
use crate::table::{Entry, WorkerTable};
use crate::{NoPrefill, Score, Work, WorkerInfo};

/// What is to be placed.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// Whose; decides what is drawn.
    pub request: RequestId,
    /// Which of its choices.
    pub choice: u32,
    /// What it will cost.
    pub work: Work,
    /// Leading tokens of the prompt that workers are thought to hold; those that are missing hold none.
    pub cached: &'a BTreeMap<WorkerRef, u32>,
    /// Workers that failed it before.
    pub avoid: &'a [WorkerRef],
    /// Numerics of the part of the answer that was sent.
    pub begun: Option<&'a str>,
    /// How many were placed before, for policies that take turns.
    pub turn: u64,
}

/// Workers for a choice, best first.
#[derive(Clone, Debug)]
pub struct Choice {
    /// One for each decode worker that may take it.
    pub pairs: Vec<Pair>,
    /// Why in this order.
    pub explanation: Explanation,
}

/// Two workers that fit each other.
#[derive(Clone, PartialEq, Debug)]
pub struct Pair {
    /// Writes the answer.
    pub decode: Arc<WorkerInfo>,
    /// Computes the prompt; else the decode worker does, and why.
    pub prefill: Result<Arc<WorkerInfo>, NoPrefill>,
    /// Tokens of the prompt that whoever computes it is thought to hold.
    pub cached: u32,
}

/// A prefill worker, scored once for all decode workers.
struct Scored<'a> {
    entry: &'a Entry,
    view: View,
    score: Score,
    against: Option<&'static str>,
}

impl WorkerTable {
    /// Pairs that may take what is asked for, best first.
    ///
    /// Decode workers to avoid, suspects, those without room, and those of other numerics than the part of the answer
    /// that was sent come after the others, not never: they may be all there is. At a beginning those with a partner
    /// of equal numerics come first, then those with any. The policy decides among equals; ties go to the lower id.
    pub fn choose(&self, ask: &Ask<'_>, now: Duration) -> Choice {
        let asked = Asked { work: ask.work, draw: draw(ask.request, ask.choice), turn: ask.turn };
        let prefills = self.scored_prefills(ask, &asked, now);
        let longest = |e: &&Entry| u64::from(e.info.max_context) > u64::from(ask.work.n_prompt);
        let entries: Vec<_> = self.usable(Role::Decode).filter(longest).collect();
        let field = field(&asked, &entries);
        let mut ranked: Vec<_> = entries
            .iter()
            .enumerate()
            .map(|(place, entry)| self.decode(ask, &asked, &field, &prefills, place, entry, now))
            .collect();
        // Stable, and the table is in order of ids.
        ranked.sort_by(|a, b| a.classes.cmp(&b.classes).then(a.total.total_cmp(&b.total)));
        let explanation = Explanation {
            request: ask.request,
            choice: ask.choice,
            policy: self.rules.policy,
            n_prompt: ask.work.n_prompt,
            prefills: explain_prefills(&prefills, ranked.first().map(|r| &*r.pair.decode)),
            decodes: ranked.iter().take(CANDIDATES_MAX).map(|r| r.candidate.clone()).collect(),
        };
        Choice { pairs: ranked.into_iter().map(|r| r.pair).collect(), explanation }
    }

    fn scored_prefills<'a>(&'a self, ask: &Ask<'_>, asked: &Asked, now: Duration) -> Vec<Scored<'a>> {
        let all: Vec<_> = self.of_role(Role::Prefill).collect();
        let against = |entry: &Entry| match () {
            () if entry.is_draining() => Some("draining"),
            () if ask.avoid.contains(&entry.info.worker) => Some("avoided"),
            () if entry.is_suspect(now) => Some("suspect"),
            () => None,
        };
        // Those that cannot be used take no turns, and are not drawn.
        let (usable, rest): (Vec<&Entry>, Vec<&Entry>) = all.into_iter().partition(|e| against(e).is_none());
        let field = field(asked, &usable);
        let score = |(place, entry): (usize, &'a Entry)| {
            let view = self.view(ask, entry, place, now);
            Scored { entry, view, score: self.rules.policy.score(asked, &field, &view), against: against(entry) }
        };
        let mut scored: Vec<_> = usable.into_iter().enumerate().map(score).collect();
        scored.sort_by(|a, b| a.score.total().total_cmp(&b.score.total()));
        scored.extend(rest.into_iter().enumerate().map(score));
        scored
    }

    #[allow(clippy::too_many_arguments, reason = "one candidate in the light of everything that was asked")]
    fn decode(
        &self,
        ask: &Ask<'_>,
        asked: &Asked,
        field: &Field,
        prefills: &[Scored<'_>],
        place: usize,
        entry: &Entry,
        now: Duration,
    ) -> Ranked {
        let view = self.view(ask, entry, place, now);
        let policy = self.rules.policy;
        let partner = if ask.work.n_prompt.saturating_sub(view.cached) <= self.rules.local_tokens {
            Err(NoPrefill::Local)
        } else {
            partner(&entry.info, prefills)
        };
        let mut score = policy.score(asked, field, &view);
        score = match &partner {
            Ok(prefill) if policy.adds_up() => score.plus(prefill.score.clone()).plus(policy.transfer(asked, &view)),
            Ok(_) => score,
            Err(_) => score.plus(policy.local(asked, &view)),
        };
        let rank_of_partner = match &partner {
            Ok(prefill) => u8::from(prefill.entry.info.numerics() != entry.info.numerics()),
            Err(NoPrefill::Local) => 0,
            Err(_) => 2,
        };
        let classes = (
            ask.avoid.contains(&entry.info.worker),
            entry.is_suspect(now),
            !view.predicted.fits(view.blocks),
            ask.begun.is_some_and(|numerics| numerics != entry.info.numerics()),
            rank_of_partner,
        );
        let against = [
            (classes.0, "avoided"),
            (classes.1, "suspect"),
            (classes.2, "no_room"),
            (classes.3 || classes.4 == 1, "other_numerics"),
            (classes.4 == 2, "no_partner"),
        ];
        Ranked {
            classes,
            total: score.total(),
            candidate: Candidate {
                worker: entry.info.worker.clone(),
                partner: Some(match &partner {
                    Ok(prefill) => Partner::Prefill(prefill.entry.info.worker.clone()),
                    Err(none) => Partner::None(none.as_str()),
                }),
                cached: view.cached,
                against: against.into_iter().filter_map(|(is_so, why)| is_so.then_some(why)).collect(),
                score,
            },
            pair: Pair {
                decode: entry.info.clone(),
                cached: partner.as_ref().map_or(view.cached, |prefill| prefill.view.cached),
                prefill: partner.map(|prefill| prefill.entry.info.clone()),
            },
        }
    }

    fn view(&self, ask: &Ask<'_>, entry: &Entry, place: usize, now: Duration) -> View {
        // The last token is always computed: it gives the first one of the answer.
        let most = ask.work.n_prompt.saturating_sub(1);
        View {
            role: entry.info.role,
            place,
            predicted: entry.predicted(),
            cached: ask.cached.get(&entry.info.worker).copied().unwrap_or(0).min(most),
            blocks: entry.info.blocks(ask.work),
            block_tokens: entry.info.block_tokens(),
            pace: entry.pace(&self.cluster, now),
        }
    }
}

struct Ranked {
    classes: (bool, bool, bool, bool, u8),
    total: f64,
    candidate: Candidate,
    pair: Pair,
}

fn field(asked: &Asked, entries: &[&Entry]) -> Field {
    let loads: Vec<_> = entries.iter().map(|entry| entry.predicted()).collect();
    Field::new(asked.draw, &loads)
}

/// The best prefill worker whose blocks `decode` can take; one of equal numerics if there is one. Suspects and those to
/// avoid are not used: `decode` can prefill by itself.
fn partner<'a>(decode: &WorkerInfo, prefills: &'a [Scored<'a>]) -> Result<&'a Scored<'a>, NoPrefill> {
    let mut none = NoPrefill::Absent;
    let mut other_bits = None;
    for prefill in prefills {
        match prefill.against {
            Some("draining") => none = none.or(NoPrefill::Draining),
            Some(_) => none = none.or(NoPrefill::Suspect),
            None => match decode.mismatch(&prefill.entry.info) {
                Some(why) => none = none.or(NoPrefill::Incompatible(why)),
                None if prefill.entry.info.numerics() == decode.numerics() => return Ok(prefill),
                None => {
                    other_bits.get_or_insert(prefill);
                }
            },
        }
    }
    other_bits.ok_or(none)
}

fn explain_prefills(prefills: &[Scored<'_>], decode: Option<&WorkerInfo>) -> Vec<Candidate> {
    let candidate = |prefill: &Scored<'_>| {
        let info = &prefill.entry.info;
        let mut against: Vec<_> = prefill.against.into_iter().collect();
        match decode {
            Some(decode) if decode.mismatch(info).is_some() => against.push("incompatible"),
            Some(decode) if decode.numerics() != info.numerics() => against.push("other_numerics"),
            _ => {}
        }
        Candidate {
            worker: info.worker.clone(),
            partner: None,
            cached: prefill.view.cached,
            against,
            score: prefill.score.clone(),
        }
    };
    prefills.iter().take(CANDIDATES_MAX).map(candidate).collect()
}
