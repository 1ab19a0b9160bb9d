//! Settings of a role: defaults, then its TOML file, then `BATON__*` variables, then flags; the later one wins.
//!
//! A setting is a flag by another name: `kv_blocks = 512` in the file and `BATON__KV_BLOCKS=512` mean
//! `--kv-blocks 512`. They are put in front of the real flags and parsed as one command line, so that each default,
//! unit and check is written once, in [`crate::cli`].

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser as _};
use toml::{Table, Value};

use crate::cli::{Cli, ROLES};

/// First part of the variables.
const PREFIX: &str = "BATON";

/// Parses the process's command line with its settings in front.
///
/// # Errors
/// If the file cannot be read or a setting is unknown or no scalar. Wrong flags end the process with clap's message.
pub(crate) fn parse() -> anyhow::Result<Cli> {
    parse_from(std::env::args_os().collect())
}

fn parse_from(arguments: Vec<OsString>) -> anyhow::Result<Cli> {
    let role = arguments.iter().position(|a| ROLES.iter().any(|role| a == role));
    let Some(at) = role else {
        return Ok(Cli::parse_from(arguments));
    };
    let file = config_file(&arguments[at..]);
    let table: Table = bootstrap::load(file.as_deref(), PREFIX, Table::new())?;
    let name = arguments[at].to_string_lossy();
    let mut all = arguments[..=at].to_vec();
    all.extend(as_flags(&name, &table).with_context(|| match &file {
        Some(file) => format!("settings of {} and the environment", file.display()),
        None => "settings of the environment".to_owned(),
    })?);
    all.extend_from_slice(&arguments[at + 1..]);
    Ok(Cli::parse_from(all))
}

/// The value of `--config`, which must be known before the flags can be parsed.
fn config_file(arguments: &[OsString]) -> Option<PathBuf> {
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        if argument == "--config" {
            return arguments.next().map(PathBuf::from);
        }
        if let Some(path) = argument.to_str().and_then(|a| a.strip_prefix("--config=")) {
            return Some(PathBuf::from(path));
        }
    }
    None
}

fn as_flags(role: &str, table: &Table) -> anyhow::Result<Vec<OsString>> {
    let command = Cli::command();
    let known = command.find_subcommand(role).context("a role is a command")?;
    let mut flags = Vec::new();
    for (key, value) in table {
        let flag = key.replace('_', "-");
        let argument = known.get_arguments().find(|a| a.get_long() == Some(&flag) && flag != "config");
        anyhow::ensure!(argument.is_some(), "{role} has no setting {key:?}");
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Integer(number) => number.to_string(),
            Value::Float(number) => number.to_string(),
            Value::Boolean(switch) => if *switch { "on" } else { "off" }.to_owned(),
            _ => anyhow::bail!("{key:?} must be a text, a number or a truth value"),
        };
        flags.push(format!("--{flag}={text}").into());
    }
    Ok(flags)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Command;

    fn parse(flags: &[&str], table: &str) -> anyhow::Result<Cli> {
        let table: Table = table.parse()?;
        let mut all: Vec<OsString> = vec!["baton".into(), "decode".into()];
        all.extend(as_flags("decode", &table)?);
        all.extend(flags.iter().map(OsString::from));
        Ok(Cli::try_parse_from(all)?)
    }

    #[test]
    fn flags_win_over_settings_and_settings_over_defaults() {
        let file = "model = \"m\"\nregistry = \"etcd://a:1\"\nkv_blocks = 7\nkv_checksum = false\n";
        let Command::Decode(args) = parse(&["--kv-blocks", "9"], file).expect("valid").command else {
            panic!("decode was asked for");
        };
        assert_eq!((args.engine.kv_blocks, args.engine.step_tokens), (9, 256));
        assert_eq!(args.engine.kv_checksum, crate::cli::Switch::Off);
        assert_eq!((args.model.model.as_str(), args.process.registry.as_str()), ("m", "etcd://a:1"));
    }

    #[test]
    fn unknown_and_malformed_settings_are_named() {
        for (table, names) in
            [("kv_block = 7", "kv_block"), ("kv_blocks = [1]", "kv_blocks"), ("config = \"x\"", "config")]
        {
            let error = parse(&[], table).err().expect("refused").to_string();
            assert!(error.contains(names), "{error}");
        }
    }

    #[test]
    fn finds_the_config_file_in_both_spellings() {
        let list = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        for words in [&["decode", "--config", "a.toml"][..], &["decode", "--threads", "2", "--config=a.toml"]] {
            assert_eq!(config_file(&list(words)), Some("a.toml".into()));
        }
        assert_eq!(config_file(&list(&["decode", "--threads", "2"])), None);
    }
}
