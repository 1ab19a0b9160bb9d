//! Settings in one order: defaults, file, environment, flags; the later one wins.
//!
//! A settings type is `Deserialize` with `#[serde(default, deny_unknown_fields)]`, so that each layer can be read,
//! and refused, alone: an error names the file and line, the variable or the flag. The environment names a field by
//! its path: `BATON__HTTP__ADDRESS` is `http.address`. Ranges are the type's own `validate()`.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use toml::{Table, Value};

/// Largest settings file, bytes.
const FILE_MAX: u64 = 1 << 20;
/// Deepest path of a variable.
const DEPTH_MAX: usize = 8;

/// Settings that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: cannot be read", file.display())]
    Unreadable {
        /// Which file.
        file: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not a settings file of this service.
    #[error("{}: {message}", file.display())]
    File {
        /// Which file.
        file: PathBuf,
        /// Line, field and reason.
        message: String,
    },
    /// A variable names no field or has a value of another type.
    #[error("environment variable {variable}: {message}")]
    Variable {
        /// Which variable.
        variable: String,
        /// Reason.
        message: String,
    },
    /// A flag has a value of another type.
    #[error("flags: {message}")]
    Flags {
        /// Field and reason.
        message: String,
    },
    /// The layers are fine alone and wrong together.
    #[error("settings: {message}")]
    Together {
        /// Field and reason.
        message: String,
    },
}

/// Reads settings: `file` if given, then variables that begin with `prefix` and two underscores, then `flags`.
///
/// # Errors
/// [`ConfigError`], for unknown fields too.
pub fn load<T: DeserializeOwned>(file: Option<&Path>, prefix: &str, flags: Table) -> Result<T, ConfigError> {
    load_from(file, &format!("{prefix}__"), crate::env::with_prefix(&format!("{prefix}__")), flags)
}

fn load_from<T: DeserializeOwned>(
    file: Option<&Path>,
    prefix: &str,
    variables: Vec<(String, String)>,
    flags: Table,
) -> Result<T, ConfigError> {
    let mut merged = match file {
        Some(file) => read_file::<T>(file)?,
        None => Table::new(),
    };
    for (variable, text) in variables {
        let path = &variable[prefix.len()..];
        let layer = read_variable::<T>(path, &text)
            .map_err(|message| ConfigError::Variable { variable: variable.clone(), message })?;
        merge(&mut merged, layer);
    }
    deserialize::<T>(flags.clone()).map_err(|message| ConfigError::Flags { message })?;
    merge(&mut merged, flags);
    deserialize(merged).map_err(|message| ConfigError::Together { message })
}

fn read_file<T: DeserializeOwned>(file: &Path) -> Result<Table, ConfigError> {
    let unreadable = |source| ConfigError::Unreadable { file: file.to_owned(), source };
    let bad = |message: String| ConfigError::File { file: file.to_owned(), message };
    if std::fs::metadata(file).map_err(unreadable)?.len() > FILE_MAX {
        return Err(bad(format!("longer than {FILE_MAX} bytes")));
    }
    let text = std::fs::read_to_string(file).map_err(unreadable)?;
    toml::from_str::<T>(&text).map_err(|e| bad(e.to_string()))?;
    text.parse().map_err(|e: toml::de::Error| bad(e.to_string()))
}

/// One variable as a table of one leaf. `12`, `true` and `["a"]` are TOML values; what is not, or does not fit the
/// field, is a string.
fn read_variable<T: DeserializeOwned>(path: &str, text: &str) -> Result<Table, String> {
    let keys: Vec<String> = path.split("__").map(str::to_ascii_lowercase).collect();
    if keys.len() > DEPTH_MAX || keys.iter().any(String::is_empty) {
        return Err("not a path of a field".into());
    }
    let nest = |leaf: Value| {
        let (first, rest) = keys.split_first().expect("split gives at least one part");
        let value = rest.iter().rev().fold(leaf, |inner, key| Value::Table(Table::from_iter([(key.clone(), inner)])));
        Table::from_iter([(first.clone(), value)])
    };
    let as_string = nest(Value::String(text.to_owned()));
    let typed = toml::from_str::<Table>(&format!("v = {text}")).ok().filter(|t| t.len() == 1);
    let Some(typed) = typed.and_then(|mut t| t.remove("v")).map(nest) else {
        return deserialize::<T>(as_string.clone()).map(|_| as_string);
    };
    match deserialize::<T>(typed.clone()) {
        Ok(_) => Ok(typed),
        Err(message) => deserialize::<T>(as_string.clone()).map(|_| as_string).map_err(|_| message),
    }
}

fn deserialize<T: DeserializeOwned>(table: Table) -> Result<T, String> {
    T::deserialize(table).map_err(|e| e.to_string().trim_end().replace('\n', " "))
}

fn merge(into: &mut Table, over: Table) {
    for (key, value) in over {
        match (into.get_mut(&key), value) {
            (Some(Value::Table(old)), Value::Table(new)) => merge(old, new),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize, Debug, PartialEq)]
    #[serde(default, deny_unknown_fields)]
    struct Config {
        id: String,
        threads: usize,
        http: Listen,
    }

    #[derive(Deserialize, Debug, PartialEq)]
    #[serde(default, deny_unknown_fields)]
    struct Listen {
        address: SocketAddr,
        tags: Vec<String>,
    }

    impl Default for Config {
        fn default() -> Self {
            Self { id: "none".into(), threads: 1, http: Listen::default() }
        }
    }

    impl Default for Listen {
        fn default() -> Self {
            Self { address: SocketAddr::from(([127, 0, 0, 1], 8000)), tags: Vec::new() }
        }
    }

    fn loaded(file: &str, variables: &[(&str, &str)], flags: &str) -> Result<Config, String> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("router.toml");
        std::fs::write(&path, file).expect("a file");
        let variables = variables.iter().map(|&(n, v)| (n.to_owned(), v.to_owned())).collect();
        let flags = flags.parse().expect("a table");
        load_from(Some(&path), "BATON__", variables, flags)
            .map_err(|e| e.to_string().replace(&folder.path().display().to_string(), ""))
    }

    #[test]
    fn later_layers_win_field_by_field() {
        let config = loaded(
            "id = 'file'\nthreads = 2\n[http]\naddress = '0.0.0.0:1'\ntags = ['f']",
            &[("BATON__ID", "7"), ("BATON__HTTP__ADDRESS", "0.0.0.0:2"), ("BATON__THREADS", "3")],
            "threads = 4",
        );
        let http = Listen { address: SocketAddr::from(([0, 0, 0, 0], 2)), tags: vec!["f".into()] };
        assert_eq!(config, Ok(Config { id: "7".into(), threads: 4, http }));
        assert_eq!(loaded("", &[], ""), Ok(Config::default()));
        let tags = loaded("", &[("BATON__HTTP__TAGS", r#"["a", "b"]"#)], "").expect("a list").http.tags;
        assert_eq!(tags, ["a", "b"]);
    }

    fn check_refused(file: &str, variables: &[(&str, &str)], flags: &str, wanted: &[&str]) {
        let message = loaded(file, variables, flags).expect_err("refused");
        for part in wanted {
            assert!(message.contains(part), "{part:?} is not in {message:?}");
        }
    }

    #[test]
    fn refusals_name_the_source_and_the_field() {
        check_refused("threds = 2", &[], "", &["router.toml", "line 1", "threds", "threads"]);
        check_refused("[http]\nadress = 'x'", &[], "", &["router.toml", "line 2", "adress"]);
        check_refused("threads = 'many'", &[], "", &["router.toml", "line 1", "threads"]);
        check_refused("threads = ", &[], "", &["router.toml", "line 1"]);
        check_refused("", &[("BATON__HTTP__PORT", "1")], "", &["BATON__HTTP__PORT", "port"]);
        check_refused("", &[("BATON__THREADS", "many")], "", &["BATON__THREADS", "many"]);
        check_refused("", &[("BATON__THREADS__", "1")], "", &["BATON__THREADS__"]);
        check_refused("", &[("BATON__THREADS", "1\nid = 2")], "", &["BATON__THREADS"]);
        check_refused("", &[], "thread = 1", &["flags", "thread"]);
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = load::<Config>(Some(Path::new("absent.toml")), "BATON_TEST_UNUSED", Table::new());
        assert!(error.expect_err("refused").to_string().contains("absent.toml"));
    }
}
