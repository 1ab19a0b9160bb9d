//! The project's shape, checked: dependency arrows, who may know which outside thing, where `unsafe` lives.

#![allow(missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Layers from top to bottom. A crate may depend on crates of lower layers, and on those named beside it.
const LAYERS: &[&[&str]] = &[
    &["baton", "tests"],
    &["router", "prefill", "decode"],
    &["node"],
    &["worker", "rpc", "transfer", "registry", "bootstrap"],
    &["replay"],
    &["routing", "index", "scheduler", "kvcache", "experts"],
    &["engine", "text"],
    &["kernels", "modelfile"],
    &["types", "proto"],
];

/// Arrows inside a layer.
const SIDEWAYS: &[(&str, &str)] = &[("scheduler", "kvcache"), ("transfer", "rpc")];

/// Decisions without tasks, clocks or randomness of their own.
const PURE: &[&str] = &["types", "routing", "index", "replay", "scheduler", "kvcache"];

/// Who may depend on an outside crate.
const OWNERS: &[(&str, &[&str])] = &[
    // The registry serves etcd's wire.
    ("tonic", &["proto", "rpc", "transfer", "registry"]),
    ("tonic-prost", &["proto", "rpc", "transfer"]),
    ("prost", &["proto", "rpc", "transfer"]),
    ("proto", &["rpc", "transfer"]),
    ("etcd-client", &["registry"]),
    ("memmap2", &["modelfile"]),
    ("tokenizers", &["text"]),
    ("minijinja", &["text"]),
    ("cudarc", &["kernels"]),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the repository").to_owned()
}

struct Crate {
    dir: PathBuf,
    normal: BTreeSet<String>,
    all: BTreeSet<String>,
}

fn crates() -> BTreeMap<String, Crate> {
    let root = root();
    let mut dirs = vec![root.join("proto"), root.join("kernels"), root.join("tests")];
    for parent in ["services", "services/libs"] {
        for entry in std::fs::read_dir(root.join(parent)).expect("the layout is fixed") {
            dirs.push(entry.expect("readable").path());
        }
    }
    let mut found = BTreeMap::new();
    for dir in dirs.into_iter().filter(|d| d.join("Cargo.toml").exists()) {
        let text = std::fs::read_to_string(dir.join("Cargo.toml")).expect("readable");
        let manifest: toml::Table = text.parse().expect("a manifest is TOML");
        let names = |table: &str| -> BTreeSet<String> {
            manifest.get(table).and_then(|t| t.as_table()).into_iter().flat_map(|t| t.keys().cloned()).collect()
        };
        let name = manifest["package"]["name"].as_str().expect("a package has a name").to_owned();
        assert_eq!(Some(name.as_str()), dir.file_name().and_then(|n| n.to_str()), "folder name = crate name");
        let normal = names("dependencies");
        let all = normal.iter().cloned().chain(names("dev-dependencies")).chain(names("build-dependencies")).collect();
        found.insert(name, Crate { dir, normal, all });
    }
    found
}

fn layer(name: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&name))
}

/// Rust files of a crate, with their text.
fn sources(dir: &Path, include_tests: bool) -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    let mut open = vec![dir.join("src")];
    if include_tests {
        open.push(dir.join("tests"));
    }
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok) {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&path).expect("sources are UTF-8");
                files.push((path, text));
            }
        }
    }
    files
}

#[test]
fn dependencies_point_down() {
    let crates = crates();
    for (name, krate) in &crates {
        let own = layer(name).unwrap_or_else(|| panic!("crate {name} is in no layer: add it to LAYERS"));
        for dep in krate.normal.iter().filter(|d| crates.contains_key(*d)) {
            let below = layer(dep).is_some_and(|l| l > own);
            let sideways = SIDEWAYS.contains(&(name.as_str(), dep.as_str()));
            assert!(below || sideways, "{name} must not depend on {dep}: arrows point down");
        }
    }
}

#[test]
fn one_crate_knows_each_outside_thing() {
    for (name, krate) in crates() {
        for (outside, owners) in OWNERS {
            if krate.normal.contains(*outside) {
                assert!(owners.contains(&name.as_str()), "{name} must not depend on {outside}");
            }
        }
        if name != "bootstrap" && name != "tests" {
            for (path, text) in sources(&krate.dir, false) {
                let code = text.split("#[cfg(test)]").next().unwrap_or_default();
                assert!(!code.contains("env::var"), "{}: only bootstrap reads the environment", path.display());
            }
        }
    }
}

#[test]
fn pure_crates_stay_pure() {
    let crates = crates();
    for name in PURE {
        let krate = &crates[*name];
        for banned in ["tokio", "tonic", "getrandom", "rand", "etcd-client", "reqwest"] {
            assert!(!krate.normal.contains(banned), "{name} is pure and must not depend on {banned}");
        }
        for (path, text) in sources(&krate.dir, false) {
            for banned in ["Instant::now", "SystemTime", "thread::", "std::net", "std::fs"] {
                assert!(!text.contains(banned), "{}: a pure crate must not use {banned}", path.display());
            }
        }
    }
}

#[test]
fn unsafe_lives_in_kernels() {
    for (name, krate) in crates() {
        for (path, text) in sources(&krate.dir, true) {
            let uses = text.lines().filter(|l| {
                let code = l.trim_start();
                !code.starts_with("//") && (code.contains("unsafe {") || code.contains("unsafe fn"))
            });
            let n = uses.count();
            // The file mapping: made in one expression, its pages given back in another.
            let allowed = name == "kernels" || (name == "modelfile" && path.ends_with("bytes.rs") && n <= 2);
            assert!(n == 0 || allowed, "{}: unsafe outside kernels", path.display());
        }
    }
}

#[test]
fn every_crate_introduces_itself() {
    for (name, krate) in crates() {
        let lib = ["src/lib.rs", "src/main.rs"].map(|f| krate.dir.join(f)).into_iter().find(|f| f.exists());
        let text = std::fs::read_to_string(lib.expect("a crate has a root")).expect("readable");
        let intro = text.lines().take_while(|l| l.starts_with("//!")).count();
        assert!(intro >= 3, "{name}: the crate's first lines say what it is, what it is not, where to begin");
    }
}

#[test]
fn files_have_one_subject() {
    for krate in crates().into_values() {
        for (path, text) in sources(&krate.dir, true) {
            let lines = text.lines().count();
            assert!(lines <= 700, "{} has {lines} lines: split it by subject", path.display());
        }
    }
}

/// The code map names every crate, and nothing that is gone.
#[test]
fn architecture_names_every_crate() {
    let text = std::fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md exists");
    for name in crates().keys() {
        assert!(text.contains(&format!("`{name}`")), "ARCHITECTURE.md does not name crate `{name}`");
    }
}

#[test]
fn test_dependencies_exist_in_the_workspace_once() {
    let manifest: toml::Table =
        std::fs::read_to_string(root().join("Cargo.toml")).expect("readable").parse().expect("TOML");
    let known = manifest["workspace"]["dependencies"].as_table().expect("shared versions");
    for (name, krate) in crates() {
        for dep in &krate.all {
            assert!(known.contains_key(dep), "{name}: dependency {dep} has no shared version in the workspace");
        }
    }
}
