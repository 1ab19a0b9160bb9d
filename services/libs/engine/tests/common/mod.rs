//! Shared by the engine's tests: where reference data is, and opening models.
#![allow(dead_code, reason = "each test uses a part")]

use std::path::{Path, PathBuf};

use engine::{Compute, Engine, EngineConfig, LoadError, ModelSource};

/// The folder with reference data, from `BATON_SHARED` or next to the repository.
pub(crate) fn shared(what: &str) -> Option<PathBuf> {
    let given = std::env::var_os("BATON_SHARED").map(PathBuf::from);
    let found = given.into_iter().chain(above("shared")).map(|dir| dir.join(what)).find(|p| p.exists());
    if found.is_none() {
        skipped(&format!("no {what}: set BATON_SHARED"));
    }
    found
}

/// Small reference cases: those kept with the repository's tests, and those of the shared folder.
pub(crate) fn golden_cases(prefix: &str) -> Vec<PathBuf> {
    let folders = above("tests/golden/data").into_iter().chain(shared("golden/cases"));
    let mut cases: Vec<PathBuf> = folders
        .filter_map(|dir| dir.read_dir().ok())
        .flat_map(|entries| entries.filter_map(|e| Some(e.ok()?.path())))
        .filter(|p| p.join("golden.json").is_file() && file_name(p).starts_with(prefix))
        .collect();
    cases.sort();
    cases
}

/// Families without experts, as their cases' names begin.
const DENSE: [&str; 8] = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "olmo2"];

/// The cases of all families without experts.
pub(crate) fn dense_cases() -> Vec<PathBuf> {
    let is_dense =
        |case: &PathBuf| !file_name(case).contains("moe") && DENSE.iter().any(|f| file_name(case).starts_with(f));
    golden_cases("").into_iter().filter(is_dense).collect()
}

/// The demo model, from `BATON_DEMO_MODEL`.
pub(crate) fn demo_model() -> Option<PathBuf> {
    let found = std::env::var_os("BATON_DEMO_MODEL").map(PathBuf::from).filter(|p| p.is_file());
    if found.is_none() {
        skipped("no demo model: set BATON_DEMO_MODEL");
    }
    found
}

pub(crate) fn config(compute: Compute) -> EngineConfig {
    EngineConfig { compute, ..EngineConfig::default() }
}

pub(crate) fn open(path: &Path, config: &EngineConfig) -> Box<dyn Engine> {
    try_open(path, config).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

pub(crate) fn try_open(path: &Path, config: &EngineConfig) -> Result<Box<dyn Engine>, LoadError> {
    engine::open(&ModelSource::detect(path)?, config, &mut |_| ())
}

pub(crate) fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

pub(crate) fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Says loudly that a test did not test.
#[allow(clippy::print_stderr, reason = "the reader of the test's output must know")]
fn skipped(why: &str) {
    eprintln!("SKIPPED: {why}");
}

/// `what` in this crate's folder or one above it.
fn above(what: &str) -> Option<PathBuf> {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().map(|dir| dir.join(what)).find(|p| p.is_dir())
}
