//! A small thread pool for one caller: `n - 1` helper threads and the caller itself work on slices of a loop.
//!
//! Slices are claimed one at a time, so a thread that does not get a core takes none, and the caller waits only for
//! helpers that have begun a slice: a busy machine slows the pool down, it never makes it wait for a thread that is
//! not running. Helpers spin for some tens of microseconds after work, then sleep. Nothing is allocated per call.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::affinity::{PinError, pin_thread};

/// How long a thread looks for work, or for the others' end, before it sleeps.
const SPIN: Duration = Duration::from_micros(40);

/// Most threads of one pool.
pub const THREADS_MAX: usize = 256;

/// Runs loops on several threads. Results must not (and with disjoint slices cannot) depend on their number.
pub struct Pool {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
    /// The caller's core, if threads are bound to cores.
    caller_core: Option<usize>,
}

/// The state word: helpers inside the job (low 16 bits), whether more may enter, whether all must end, and a
/// generation that tells one job from the next.
const INSIDE: u64 = 0xFFFF;
const OPEN: u64 = 1 << 16;
const STOP: u64 = 1 << 17;
const GENERATION: u64 = 1 << 18;

type Body<'a> = &'a (dyn Fn(usize) + Sync);

struct Shared {
    state: AtomicU64,
    /// Next index to be claimed.
    next: AtomicUsize,
    /// The job's body and its number of indices. Written by the caller while nobody is inside and the job is not
    /// open; read by helpers that entered.
    job: UnsafeCell<Option<(Body<'static>, usize)>>,
    sleepers: AtomicUsize,
    caller_sleeps: AtomicBool,
    lock: Mutex<Option<Box<dyn Any + Send>>>,
    work: Condvar,
    ended: Condvar,
}

// SAFETY: every field but `job` is Sync by itself. `job` is written by the one caller (`run` takes `&mut Pool`)
// only while the state word says closed and nobody inside, and read only by threads that are counted inside; the
// state word's release and acquire order the two.
unsafe impl Sync for Shared {}

impl Pool {
    /// A pool of `n_threads` threads, the caller's own included; at least 1, at most [`THREADS_MAX`].
    ///
    /// # Panics
    /// If the system refuses a thread.
    pub fn new(n_threads: usize) -> Self {
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            next: AtomicUsize::new(0),
            job: UnsafeCell::new(None),
            sleepers: AtomicUsize::new(0),
            caller_sleeps: AtomicBool::new(false),
            lock: Mutex::new(None),
            work: Condvar::new(),
            ended: Condvar::new(),
        });
        let helpers = (1..n_threads.clamp(1, THREADS_MAX)).map(|i| spawn(i, shared.clone(), || ())).collect();
        Self { shared, helpers, caller_core: None }
    }

    /// A pool of as many threads as there are `cores`, at most [`THREADS_MAX`], each bound to one of them. The caller's
    /// is the first: it binds itself by [`bind_caller`](Self::bind_caller).
    ///
    /// # Errors
    /// [`PinError`] if a thread cannot be bound.
    ///
    /// # Panics
    /// If the system refuses a thread.
    pub fn pinned(cores: &[usize]) -> Result<Self, PinError> {
        let mut pool = Self::new(1);
        let (say, hear) = mpsc::channel();
        for (i, &core) in cores.iter().enumerate().take(THREADS_MAX).skip(1) {
            let say = say.clone();
            // The pool lives as long as it listens: a helper is heard.
            let bind = move || drop(say.send(pin_thread(core)));
            pool.helpers.push(spawn(i, pool.shared.clone(), bind));
        }
        drop(say);
        hear.iter().collect::<Result<(), PinError>>()?;
        pool.caller_core = cores.first().copied();
        Ok(pool)
    }

    /// Binds the calling thread, which is to be the one that calls [`run`](Self::run), to its core, if the pool is
    /// bound to cores.
    ///
    /// # Errors
    /// [`PinError`] if it cannot be bound.
    pub fn bind_caller(&self) -> Result<(), PinError> {
        self.caller_core.map_or(Ok(()), pin_thread)
    }

    /// Threads, the caller's own included.
    pub fn n_threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Calls `body` with every index below `n`, each once, on any thread, in any order; returns when all are done.
    ///
    /// # Panics
    /// With the first panic of `body`; some indices may then not have been run.
    pub fn run(&mut self, n: usize, body: Body<'_>) {
        if self.helpers.is_empty() || n <= 1 {
            (0..n).for_each(body);
            return;
        }
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes. `body` is called by threads inside the job, and `Close` below returns
        // (by its drop, even on a panic) only after the job is closed to newcomers and nobody is inside.
        let body: Body<'static> = unsafe { std::mem::transmute::<Body<'_>, Body<'static>>(body) };
        // SAFETY: the last `run` ended closed with nobody inside, and `&mut self` keeps other callers out.
        unsafe { *shared.job.get() = Some((body, n)) };
        shared.next.store(0, Ordering::Relaxed);
        let generation = shared.state.load(Ordering::Relaxed) & !(GENERATION - 1);
        let close = Close(shared);
        shared.state.store(generation.wrapping_add(GENERATION) | OPEN, Ordering::SeqCst);
        if shared.sleepers.load(Ordering::SeqCst) > 0 {
            drop(shared.guard());
            shared.work.notify_all();
        }
        shared.claim(body, n);
        drop(close);
        let panic = shared.guard().take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// Splits `0..n` into ranges of `grain` (the last may be shorter) and calls `body` with each.
    pub fn ranges(&mut self, n: usize, grain: usize, body: impl Fn(std::ops::Range<usize>) + Sync) {
        let grain = grain.max(1);
        self.run(n.div_ceil(grain), &|i| body(i * grain..n.min((i + 1) * grain)));
    }

    /// Splits `data` into chunks of `len` (the last may be shorter) and calls `body` with each and its number.
    pub fn chunks_mut<T: Send>(&mut self, data: &mut [T], len: usize, body: impl Fn(usize, &mut [T]) + Sync) {
        let len = len.max(1);
        let total = data.len();
        let data = SharedMut::new(data);
        self.run(total.div_ceil(len), &|i| {
            let start = i * len;
            // SAFETY: chunk `i` is `start..min(start + len, total)`; indices are handed out once each, so no two
            // chunks overlap.
            body(i, unsafe { data.slice(start, len.min(total - start)) });
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.state.fetch_or(STOP, Ordering::SeqCst);
        drop(self.shared.guard());
        self.shared.work.notify_all();
        for helper in self.helpers.drain(..) {
            // A helper catches its job's panics; it cannot end with one.
            let _ = helper.join();
        }
    }
}

/// A helper that does `first`, then works for the pool.
fn spawn(i: usize, shared: Arc<Shared>, first: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    let thread = std::thread::Builder::new().name(format!("kernel-{i}"));
    let life = move || {
        first();
        shared.help();
    };
    thread.spawn(life).expect("the system gives a thread at start")
}

/// Closes the job and waits until nobody is inside.
struct Close<'a>(&'a Shared);

impl Drop for Close<'_> {
    fn drop(&mut self) {
        self.0.state.fetch_and(!OPEN, Ordering::SeqCst);
        let nobody_inside = || self.0.state.load(Ordering::SeqCst) & INSIDE == 0;
        if spin_until(nobody_inside) {
            return;
        }
        self.0.caller_sleeps.store(true, Ordering::SeqCst);
        let mut guard = self.0.guard();
        while !nobody_inside() {
            guard = self.0.ended.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.0.caller_sleeps.store(false, Ordering::SeqCst);
    }
}

impl Shared {
    /// A helper's life.
    fn help(&self) {
        let mut last = 0;
        while let Some(generation) = self.enter(last) {
            last = generation;
            // SAFETY: this thread is counted inside the job, so the caller does not write the slot.
            let job = unsafe { *self.job.get() };
            let (body, n) = job.expect("an open job has a body");
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.claim(body, n))) {
                self.next.store(n, Ordering::Relaxed);
                self.guard().get_or_insert(panic);
            }
            let before = self.state.fetch_sub(1, Ordering::SeqCst);
            if before & INSIDE == 1 && before & OPEN == 0 && self.caller_sleeps.load(Ordering::SeqCst) {
                drop(self.guard());
                self.ended.notify_all();
            }
        }
    }

    /// Waits for a job newer than `last` and enters it; `None`: the pool ends.
    fn enter(&self, last: u64) -> Option<u64> {
        let ready = || {
            let state = self.state.load(Ordering::SeqCst);
            state & STOP != 0 || (state & OPEN != 0 && state / GENERATION != last)
        };
        loop {
            if !spin_until(ready) {
                self.sleepers.fetch_add(1, Ordering::SeqCst);
                let mut guard = self.guard();
                while !ready() {
                    guard = self.work.wait(guard).unwrap_or_else(PoisonError::into_inner);
                }
                drop(guard);
                self.sleepers.fetch_sub(1, Ordering::SeqCst);
            }
            let state = self.state.load(Ordering::SeqCst);
            if state & STOP != 0 {
                return None;
            }
            // The job may have closed since; then there is nothing to enter and the wait begins again.
            if state & OPEN != 0
                && self.state.compare_exchange(state, state + 1, Ordering::SeqCst, Ordering::SeqCst).is_ok()
            {
                return Some(state / GENERATION);
            }
        }
    }

    fn claim(&self, body: Body<'_>, n: usize) {
        loop {
            let i = self.next.fetch_add(1, Ordering::Relaxed);
            if i >= n {
                return;
            }
            body(i);
        }
    }

    fn guard(&self) -> MutexGuard<'_, Option<Box<dyn Any + Send>>> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Spins until `ready` or for [`SPIN`]; says whether it became ready.
fn spin_until(ready: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    loop {
        for _ in 0..32 {
            if ready() {
                return true;
            }
            std::hint::spin_loop();
        }
        if start.elapsed() > SPIN {
            return ready();
        }
    }
}

/// A mutable slice that several threads write disjoint parts of.
pub(crate) struct SharedMut<'a, T> {
    base: *mut T,
    len: usize,
    borrow: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: it is a `&mut [T]` whose parts are given out by `slice`, whose callers promise that they are disjoint.
unsafe impl<T: Send> Sync for SharedMut<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for SharedMut<'_, T> {}

impl<'a, T> SharedMut<'a, T> {
    pub(crate) fn new(data: &'a mut [T]) -> Self {
        Self { base: data.as_mut_ptr(), len: data.len(), borrow: std::marker::PhantomData }
    }

    /// Elements `start..start + len`.
    ///
    /// # Safety
    /// No two live results may overlap.
    #[allow(clippy::mut_from_ref, reason = "the caller keeps the parts disjoint")]
    pub(crate) unsafe fn slice(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start <= self.len && len <= self.len - start, "{start}..+{len} of {}", self.len);
        // SAFETY: the range lies in the borrowed slice; the caller keeps the parts disjoint.
        unsafe { std::slice::from_raw_parts_mut(self.base.add(start), len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_index_runs_once_whatever_the_number_of_threads() {
        for n_threads in [1, 2, 3, 5] {
            let mut pool = Pool::new(n_threads);
            assert_eq!(pool.n_threads(), n_threads);
            for n in [0, 1, 2, 7, 100] {
                let counts: Vec<_> = (0..n).map(|_| AtomicUsize::new(0)).collect();
                pool.run(n, &|i| {
                    counts[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
                let mut data = vec![0_usize; n];
                pool.chunks_mut(&mut data, 3, |chunk, part| {
                    for (i, x) in part.iter_mut().enumerate() {
                        *x += chunk * 3 + i;
                    }
                });
                assert!(data.iter().enumerate().all(|(i, &x)| i == x));
                let sum = AtomicUsize::new(0);
                pool.ranges(n, 4, |range| {
                    sum.fetch_add(range.len(), Ordering::Relaxed);
                });
                assert_eq!(sum.into_inner(), n);
            }
        }
    }

    #[test]
    #[cfg(all(target_os = "linux", not(miri)))]
    fn pinned_threads_run_on_their_cores() {
        use crate::affinity::allowed_cores;
        let cores = allowed_cores().unwrap();
        let seen = std::thread::spawn(move || {
            let mut pool = Pool::pinned(&cores).unwrap();
            assert_eq!(pool.n_threads(), cores.len());
            pool.bind_caller().unwrap();
            let seen = Mutex::new(std::collections::BTreeSet::new());
            // Until each thread had its turn.
            for _ in 0..10_000 {
                pool.run(64, &|_| {
                    let mine = allowed_cores().unwrap();
                    assert_eq!(mine.len(), 1);
                    seen.lock().unwrap().insert(mine[0]);
                });
                if seen.lock().unwrap().len() == cores.len() {
                    break;
                }
                std::thread::yield_now();
            }
            assert_eq!(seen.into_inner().unwrap().into_iter().collect::<Vec<_>>(), cores);
        });
        seen.join().unwrap();
        assert_eq!(Pool::pinned(&[0, usize::MAX]).err().unwrap().core, usize::MAX);
    }

    #[test]
    fn many_jobs_in_a_row_with_pauses() {
        let mut pool = Pool::new(3);
        let total = AtomicUsize::new(0);
        let rounds = if cfg!(miri) { 20 } else { 5_000 };
        for round in 0..rounds {
            pool.run(4, &|i| {
                total.fetch_add(i, Ordering::Relaxed);
            });
            if round % 500 == 0 {
                std::thread::sleep(SPIN * 3);
            }
        }
        assert_eq!(total.into_inner(), rounds * 6);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let mut pool = Pool::new(3);
        for bad in 0..8 {
            let run = AssertUnwindSafe(|| pool.run(8, &|i| assert!(i != bad, "index {i}")));
            let panic = catch_unwind(run).unwrap_err();
            assert_eq!(panic.downcast_ref::<String>().unwrap(), &format!("index {bad}"));
            let count = AtomicUsize::new(0);
            pool.run(8, &|_| {
                count.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(count.into_inner(), 8);
        }
    }
}
