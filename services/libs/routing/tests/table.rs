//! The table's rules, one by one and under random histories.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use routing::{Ask, Health, NoPrefill, Policy, Rules, Work, WorkerInfo, WorkerTable};
use types::{
    Compatibility, Epoch, KvElement, KvGeometry, LayerKv, LayerKvKind, Load, RequestId, Role, WorkerId, WorkerRef,
};

const WORK: Work = Work { n_prompt: 100, n_new: 28 };
const NOW: Duration = Duration::from_secs(100);
const RULES: Rules = Rules { policy: Policy::LeastLoaded, local_tokens: 0 };

fn compatibility(digest: &str) -> Compatibility {
    let layer = LayerKv { kind: LayerKvKind::Grouped { n_kv_heads: 1, head_dim: 8 }, window: None };
    Compatibility {
        protocol: (1, 1),
        model_digest: digest.into(),
        model_revision: String::new(),
        geometry: KvGeometry { block_tokens: 16, element: KvElement::F32, layers: vec![layer] },
        rope: String::new(),
        attention: String::new(),
        quantization: String::new(),
        adapters: vec![],
        drafter: String::new(),
        numerics: String::new(),
    }
}

fn worker(role: Role, id: &str, epoch: u64) -> WorkerInfo {
    WorkerInfo {
        worker: WorkerRef { id: WorkerId::new(id), epoch: Epoch(epoch) },
        role,
        model: "m".into(),
        rpc_address: "127.0.0.1:1".into(),
        kv_address: "127.0.0.1:2".into(),
        kv_endpoints: types::KvEndpoints::default(),
        admin_address: String::new(),
        max_context: 1024,
        compatibility: Some(compatibility("a")),
        device: String::new(),
        draining: false,
    }
}

fn decode(id: &str) -> WorkerInfo {
    worker(Role::Decode, id, 1)
}

fn prefill(id: &str) -> WorkerInfo {
    worker(Role::Prefill, id, 1)
}

fn table(members: Vec<WorkerInfo>) -> WorkerTable {
    let mut table = WorkerTable::new("m", RULES);
    table.set_members(members);
    table
}

/// What is asked of the table, in short.
trait Asked {
    fn decodes(&self, work: Work, avoid: &[WorkerRef], begun: Option<&str>, now: Duration) -> Vec<Arc<WorkerInfo>>;
    fn prefill_for(&self, decode: &WorkerRef, avoid: &[WorkerRef], now: Duration)
    -> Result<Arc<WorkerInfo>, NoPrefill>;
}

impl Asked for WorkerTable {
    fn decodes(&self, work: Work, avoid: &[WorkerRef], begun: Option<&str>, now: Duration) -> Vec<Arc<WorkerInfo>> {
        let cached = BTreeMap::new();
        let ask = Ask { request: RequestId(7), choice: 0, work, cached: &cached, avoid, begun, turn: 0 };
        self.choose(&ask, now).pairs.into_iter().map(|pair| pair.decode).collect()
    }

    fn prefill_for(
        &self,
        decode: &WorkerRef,
        avoid: &[WorkerRef],
        now: Duration,
    ) -> Result<Arc<WorkerInfo>, NoPrefill> {
        let cached = BTreeMap::new();
        let ask = Ask { request: RequestId(7), choice: 0, work: WORK, cached: &cached, avoid, begun: None, turn: 0 };
        let pairs = self.choose(&ask, now).pairs;
        pairs.into_iter().find(|pair| pair.decode.worker == *decode).expect("it is offered").prefill
    }
}

fn decodes(table: &WorkerTable) -> Vec<String> {
    table.decodes(WORK, &[], None, NOW).iter().map(|i| i.worker.id.to_string()).collect()
}

fn load(blocks_total: u32, blocks_free: u32, n_waiting_tokens: u32) -> Load {
    Load { blocks_total, blocks_free, n_waiting_tokens, ..Load::default() }
}

#[test]
fn ties_go_to_the_lower_id_and_load_decides_otherwise() {
    let mut t = table(vec![decode("d1"), decode("d0"), prefill("p1"), prefill("p0")]);
    let d0 = decode("d0").worker;
    assert_eq!(decodes(&t), ["d0", "d1"]);
    assert_eq!(t.prefill_for(&d0, &[], NOW).unwrap().worker.id.as_str(), "p0");
    t.report(&d0, load(100, 10, 0));
    t.report(&decode("d1").worker, load(1000, 100, 0));
    assert_eq!(decodes(&t), ["d0", "d1"], "the same part of the pool is in use");
    t.report(&decode("d1").worker, load(1000, 101, 0));
    assert_eq!(decodes(&t), ["d1", "d0"]);
    t.report(&prefill("p0").worker, load(100, 100, 7));
    assert_eq!(t.prefill_for(&d0, &[], NOW).unwrap().worker.id.as_str(), "p1");
    let guard = t.start_prompt(&prefill("p1").worker, WORK, 0);
    assert_eq!(t.prefill_for(&d0, &[], NOW).unwrap().worker.id.as_str(), "p0", "own work counts at once");
    drop(guard);
    assert_eq!(t.prefill_for(&d0, &[], NOW).unwrap().worker.id.as_str(), "p1");
}

#[test]
fn those_without_room_and_suspects_come_last_but_come() {
    let mut t = table(vec![decode("d0"), decode("d1"), decode("d2")]);
    assert!(t.suspect(&decode("d0").worker, NOW, NOW + Duration::from_millis(1)));
    assert!(!t.suspect(&decode("d0").worker, NOW, NOW), "it is suspect already");
    t.report(&decode("d1").worker, load(100, 7, 0));
    assert_eq!(decodes(&t), ["d2", "d1", "d0"], "8 blocks do not fit into 7");
    t.trust(&decode("d0").worker);
    assert_eq!(decodes(&t)[0], "d0");
    t.suspect(&decode("d0").worker, NOW, NOW);
    assert_eq!(decodes(&t)[0], "d0", "a suspicion ends at its time");
    let avoid = [decode("d0").worker, decode("d2").worker];
    let ids: Vec<_> = t.decodes(WORK, &avoid, None, NOW).iter().map(|i| i.worker.id.to_string()).collect();
    assert_eq!(ids, ["d1", "d0", "d2"]);
}

#[test]
fn says_why_there_is_no_prefill() {
    let changed = |change: fn(&mut WorkerInfo)| {
        let mut p = prefill("p0");
        change(&mut p);
        let t = table(vec![decode("d0"), p]);
        t.prefill_for(&decode("d0").worker, &[], NOW)
    };
    assert!(changed(|_| {}).is_ok());
    assert_eq!(changed(|p| p.draining = true), Err(NoPrefill::Draining));
    assert_eq!(changed(|p| p.model = "other".into()), Err(NoPrefill::Absent));
    assert_eq!(changed(|p| p.role = Role::Decode), Err(NoPrefill::Absent));
    let Err(NoPrefill::Incompatible(why)) = changed(|p| p.compatibility = Some(compatibility("b"))) else {
        panic!("another model digest does not pair");
    };
    assert_eq!(why, "model_digest is b here and a at d0");
    let mut t = table(vec![decode("d0"), prefill("p0")]);
    t.suspect(&prefill("p0").worker, NOW, NOW * 2);
    assert_eq!(t.prefill_for(&decode("d0").worker, &[], NOW), Err(NoPrefill::Suspect));
    assert!(t.prefill_for(&decode("d0").worker, &[prefill("p0").worker], NOW * 3).is_err(), "avoided");
}

#[test]
fn a_decode_worker_with_a_partner_is_preferred() {
    let lonely = WorkerInfo { compatibility: Some(compatibility("b")), ..decode("d0") };
    let t = table(vec![lonely, decode("d1"), prefill("p0")]);
    assert_eq!(decodes(&t), ["d1", "d0"]);
}

fn with_numerics(info: WorkerInfo, numerics: &str) -> WorkerInfo {
    let document = Compatibility { numerics: numerics.into(), ..compatibility("a") };
    WorkerInfo { compatibility: Some(document), ..info }
}

#[test]
fn an_answer_goes_on_where_the_numerics_are_those_it_began_with() {
    let mut t = table(vec![
        with_numerics(decode("d0"), "cpu-2/auto"),
        with_numerics(decode("d1"), "cpu-1/auto"),
        with_numerics(decode("d2"), "cpu-1/auto"),
    ]);
    let go_on = |t: &WorkerTable, begun, avoid: &[WorkerRef]| {
        t.decodes(WORK, avoid, begun, NOW).iter().map(|i| i.worker.id.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(go_on(&t, None, &[]), ["d0", "d1", "d2"]);
    assert_eq!(go_on(&t, Some("cpu-1/auto"), &[]), ["d1", "d2", "d0"]);
    t.report(&decode("d1").worker, load(100, 50, 0));
    assert_eq!(go_on(&t, Some("cpu-1/auto"), &[]), ["d2", "d1", "d0"], "load decides among equals only");
    let dead = [decode("d1").worker, decode("d2").worker];
    assert_eq!(go_on(&t, Some("cpu-1/auto"), &dead[..1]), ["d2", "d0", "d1"]);
    assert_eq!(go_on(&t, Some("cpu-1/auto"), &dead)[0], "d0", "others, rather than those that failed");
    t.report(&decode("d2").worker, load(100, 1, 0));
    assert_eq!(go_on(&t, Some("cpu-1/auto"), &dead[..1])[0], "d0", "others, rather than none with room");
}

#[test]
fn a_pair_of_equal_numerics_is_preferred() {
    let mut t = table(vec![
        with_numerics(decode("d0"), "cpu-2/auto"),
        with_numerics(decode("d1"), "cpu-1/auto"),
        with_numerics(prefill("p0"), "cpu-3/auto"),
        with_numerics(prefill("p1"), "cpu-1/auto"),
    ]);
    assert_eq!(decodes(&t), ["d1", "d0"]);
    let partner = |t: &WorkerTable, d| t.prefill_for(&decode(d).worker, &[], NOW).unwrap().worker.id.to_string();
    assert_eq!((partner(&t, "d0"), partner(&t, "d1")), ("p0".into(), "p1".into()));
    t.report(&prefill("p1").worker, load(100, 100, 5000));
    assert_eq!((partner(&t, "d0"), partner(&t, "d1")), ("p0".into(), "p1".into()), "load decides among equals only");
    t.suspect(&prefill("p1").worker, NOW, NOW * 2);
    assert_eq!(partner(&t, "d1"), "p0", "an unequal partner rather than none");
}

#[test]
fn explains_every_worker() {
    let mut t = table(vec![
        decode("d0"),
        WorkerInfo { model: "other".into(), ..decode("d1") },
        WorkerInfo { draining: true, ..decode("d2") },
        WorkerInfo { compatibility: Some(compatibility("b")), ..prefill("p0") },
        prefill("p1"),
    ]);
    t.suspect(&prefill("p1").worker, NOW, NOW + Duration::from_secs(1));
    let states: Vec<_> = t.states(NOW).into_iter().map(|s| (s.health, s.reason)).collect();
    let expected = [
        (Health::Up, ""),
        (Health::Incompatible, r#"serves "other", not "m""#),
        (Health::Draining, "asked for no new work"),
        (Health::Incompatible, "model_digest is b here and a at d0"),
        (Health::Suspect, "failed a moment ago, avoided for 1000 ms"),
    ];
    assert_eq!(states, expected.map(|(health, reason)| (health, reason.to_owned())));
    t.set_members([prefill("p0")]);
    assert_eq!(t.states(NOW)[0].health, Health::Up, "without decode workers nothing contradicts it");
}

#[test]
fn a_new_incarnation_starts_afresh_and_words_about_the_old_one_are_ignored() {
    let mut t = table(vec![decode("d0")]);
    let old = decode("d0").worker;
    let guard = t.start(&old, WORK);
    t.suspect(&old, NOW, NOW * 2);
    let changes = t.set_members([worker(Role::Decode, "d0", 2)]);
    assert_eq!(changes.left, std::slice::from_ref(&old));
    assert_eq!(changes.joined.len(), 1);
    t.report(&old, load(10, 0, 0));
    assert!(!t.suspect(&old, NOW, NOW * 2));
    let state = &t.states(NOW)[0];
    assert_eq!((state.health, state.load, state.own_sequences), (Health::Up, None, 0));
    assert!(t.start(&old, WORK).is_none() && t.get(&old).is_none());
    drop(guard);
    assert_eq!(t.states(NOW)[0].own_sequences, 0);
}

#[test]
fn too_long_a_prompt_fits_nobody() {
    let t = table(vec![decode("d0")]);
    let work = |n_prompt| Work { n_prompt, n_new: 1 };
    assert_eq!(t.decodes(work(1023), &[], None, NOW).len(), 1);
    assert_eq!(t.decodes(work(1024), &[], None, NOW).len(), 0);
    assert_eq!(t.max_context(), Some(1024));
}

/// One thing that may happen to a table.
#[derive(Clone, Debug)]
enum Event {
    Join { id: u8, decode: bool, epoch: u64, digest: bool, draining: bool },
    Leave { id: u8 },
    Report { id: u8, epoch: u64, free: u32, waiting: u32, draining: bool },
    Suspect { id: u8, epoch: u64, until: u64 },
    Start { id: u8, epoch: u64 },
    Finish,
}

fn event() -> impl Strategy<Value = Event> {
    let (id, epoch) = (0..5u8, 1..3u64);
    prop_oneof![
        3 => (id.clone(), any::<bool>(), epoch.clone(), any::<bool>(), prop::bool::weighted(0.2))
            .prop_map(|(id, decode, epoch, digest, draining)| Event::Join { id, decode, epoch, digest, draining }),
        1 => id.clone().prop_map(|id| Event::Leave { id }),
        2 => (id.clone(), epoch.clone(), 0..=100u32, 0..500u32, prop::bool::weighted(0.2)).prop_map(
            |(id, epoch, free, waiting, draining)| Event::Report { id, epoch, free, waiting, draining }
        ),
        1 => (id.clone(), epoch.clone(), 50..150u64).prop_map(|(id, epoch, until)| Event::Suspect { id, epoch, until }),
        2 => (id, epoch).prop_map(|(id, epoch)| Event::Start { id, epoch }),
        1 => Just(Event::Finish),
    ]
}

proptest! {
    #[test]
    fn choices_hold_under_any_history(events in prop::collection::vec(event(), 1..60)) {
        let mut t = WorkerTable::new("m", RULES);
        let mut members: Vec<WorkerInfo> = Vec::new();
        let mut guards = Vec::new();
        let named = |id: u8, epoch| WorkerRef { id: WorkerId::new(format!("w{id}")), epoch: Epoch(epoch) };
        for event in events {
            match event {
                Event::Join { id, decode, epoch, digest, draining } => {
                    let role = if decode { Role::Decode } else { Role::Prefill };
                    let mut info = worker(role, &format!("w{id}"), epoch);
                    info.compatibility = Some(compatibility(if digest { "a" } else { "b" }));
                    info.draining = draining;
                    members.retain(|m| m.worker.id != info.worker.id);
                    members.push(info);
                    t.set_members(members.clone());
                }
                Event::Leave { id } => {
                    members.retain(|m| m.worker.id != named(id, 1).id);
                    t.set_members(members.clone());
                }
                Event::Report { id, epoch, free, waiting, draining } => {
                    t.report(&named(id, epoch), Load { draining, ..load(100, free, waiting) });
                }
                Event::Suspect { id, epoch, until } => {
                    t.suspect(&named(id, epoch), NOW, Duration::from_secs(until));
                }
                Event::Start { id, epoch } => guards.extend(t.start(&named(id, epoch), WORK)),
                Event::Finish => { guards.pop(); }
            }
            let states = t.states(NOW);
            prop_assert_eq!(states.len(), members.len());
            let health = |w: &WorkerRef| states.iter().find(|s| s.info.worker == *w).map(|s| (s.health, s.info.role));
            let chosen = t.decodes(WORK, &[], None, NOW);
            let may = states.iter().filter(|s| s.info.role == Role::Decode && s.health != Health::Draining).count();
            prop_assert_eq!(chosen.len(), may, "every decode worker that takes work is offered, once");
            let mut suspect_seen = false;
            for info in &chosen {
                let (health_of, role) = health(&info.worker).expect("only members are chosen");
                prop_assert_eq!(role, Role::Decode);
                prop_assert!(health_of != Health::Draining);
                prop_assert!(!(suspect_seen && health_of == Health::Up), "suspects come last");
                suspect_seen |= health_of == Health::Suspect;
                if let Ok(prefill) = t.prefill_for(&info.worker, &[], NOW) {
                    prop_assert_eq!(health(&prefill.worker), Some((Health::Up, Role::Prefill)));
                    prop_assert_eq!(&prefill.compatibility, &info.compatibility);
                }
            }
            // The order of the list of members does not matter.
            members.reverse();
            t.set_members(members.clone());
            prop_assert_eq!(t.decodes(WORK, &[], None, NOW), chosen);
        }
        drop(guards);
        prop_assert!(t.states(NOW).iter().all(|s| s.own_sequences == 0), "every guard gives back what it took");
    }
}
