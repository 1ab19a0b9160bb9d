//! The environment, read here and nowhere else.

use std::ffi::OsString;
use std::path::PathBuf;

/// Folder for a run's files (`cluster.json`, logs of children).
pub const RUN_DIR: &str = "BATON_RUN_DIR";
/// Folder for fetched models.
pub const MODEL_DIR: &str = "BATON_MODEL_DIR";

/// No variable says where such files belong.
#[derive(Debug, thiserror::Error)]
#[error("no place for {what}: set {variable}")]
pub struct NoPlace {
    what: &'static str,
    variable: &'static str,
}

/// The variable's value; `None` if it is unset, empty or not UTF-8.
pub fn string(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The variable's value as a path; `None` if it is unset or empty.
pub fn path(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// Whether the variable says yes: `1`, `true`, `yes` or `on`.
pub fn flag(name: &str) -> bool {
    string(name).is_some_and(|value| matches!(value.to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on"))
}

/// All variables whose names begin with `prefix` and that are UTF-8, by name.
pub fn with_prefix(prefix: &str) -> Vec<(String, String)> {
    let text = |s: OsString| s.into_string().ok();
    let mut found: Vec<_> = std::env::vars_os()
        .filter_map(|(name, value)| Some((text(name)?, text(value)?)))
        .filter(|(name, _)| name.starts_with(prefix))
        .collect();
    found.sort();
    found
}

/// Folder for this run's files: [`RUN_DIR`], else one of this user below the system's runtime or temporary folder.
/// The folder may not exist yet.
///
/// # Errors
/// None today; callers keep the `?` for systems without such folders.
pub fn run_dir() -> Result<PathBuf, NoPlace> {
    let runtime = || path("XDG_RUNTIME_DIR").map(|dir| dir.join("baton"));
    let temporary = || {
        let user = string("USER").or_else(|| string("LOGNAME")).unwrap_or_else(|| "default".into());
        let safe: String = user.chars().filter(|c| c.is_ascii_alphanumeric() || "-_".contains(*c)).collect();
        std::env::temp_dir().join(format!("baton-{safe}"))
    };
    Ok(path(RUN_DIR).or_else(runtime).unwrap_or_else(temporary))
}

/// Folder for fetched models: [`MODEL_DIR`], else one in this user's cache. The folder may not exist yet.
///
/// # Errors
/// [`NoPlace`] if the user has no home.
pub fn model_cache_dir() -> Result<PathBuf, NoPlace> {
    path(MODEL_DIR)
        .or_else(|| path("XDG_CACHE_HOME").map(|dir| dir.join("baton/models")))
        .or_else(|| path("HOME").map(|dir| dir.join(".cache/baton/models")))
        .ok_or(NoPlace { what: "fetched models", variable: MODEL_DIR })
}
