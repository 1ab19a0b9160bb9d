//! Jinja as chat templates expect it.
//!
//! Known differences from Python's jinja2, none in what real templates do with messages: floats from 1e16 up
//! are printed without an exponent, unprintable characters inside printed lists stay as they are, and `title`
//! leaves a word that begins with punctuation alone.

use std::io;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value};
use serde_json::Map;

use super::time::strftime;
use super::{SpecialTokens, TemplateOptions, json};
use crate::TemplateError;
use crate::error::short;

/// Longest source, in bytes.
const SOURCE_BYTES_MAX: usize = 1 << 20;
/// Longest output, in bytes.
const OUTPUT_BYTES_MAX: usize = 8 << 20;
/// Work of one rendering: about an instruction, or 64 bytes of data, each.
const FUEL: u64 = 1_000_000;
/// Deepest recursion; a macro call counts for about 10.
const RECURSION_MAX: usize = 300;

const NAME: &str = "chat";

/// A compiled template.
pub(super) struct Engine {
    environment: Environment<'static>,
    source: String,
    special: SpecialTokens,
}

/// What `raise_exception` was called with.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

impl Engine {
    pub(super) fn new(source: &str, special: &SpecialTokens) -> Result<Self, TemplateError> {
        if source.len() > SOURCE_BYTES_MAX {
            return Err(TemplateError::Limit("1 MiB of source"));
        }
        let compile = |e: Error| TemplateError::Compile(short(&e.to_string()));
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(compile)?;
        environment.set_syntax(syntax);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(RECURSION_MAX);
        environment.add_filter("tojson", json::tojson);
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Raised(message)))
        });
        environment.add_template_owned(NAME, without_generation_tags(source)).map_err(compile)?;
        Ok(Self { environment, source: source.to_owned(), special: special.clone() })
    }

    /// As it was given.
    pub(super) fn source(&self) -> &str {
        &self.source
    }

    /// Renders in the context that `apply_chat_template` gives: special tokens, messages, no tools and
    /// documents unless `variables` has some.
    pub(super) fn render(
        &self,
        messages: serde_json::Value,
        options: &TemplateOptions,
        variables: &Map<String, serde_json::Value>,
    ) -> Result<String, TemplateError> {
        let now = options.now;
        let strftime_now = Value::from_function(move |format: String| {
            strftime(&format, now)
                .map_err(|d| Error::new(ErrorKind::InvalidOperation, format!("strftime_now: unknown directive {d}")))
        });
        let special = self.special.iter().map(|(name, text)| (name.clone(), Value::from(text.as_str())));
        let given = variables.iter().map(|(name, value)| (name.clone(), Value::from(Serde(value))));
        let ours = [("tools", Value::from(())), ("documents", Value::from(()))];
        let fixed = [
            ("messages", Value::from(Serde(messages))),
            ("add_generation_prompt", Value::from(options.add_generation_prompt)),
            ("strftime_now", strftime_now),
        ];
        let owned = |(name, value): (&str, Value)| (name.to_owned(), value);
        let context =
            Value::from_pairs(ours.map(owned).into_iter().chain(special).chain(given).chain(fixed.map(owned)));
        let mut output = LimitedWriter(Vec::new());
        let template = self.environment.get_template(NAME).map_err(|e| failure(&e))?;
        template.render_captured_to(context, &mut output).map_err(|e| failure(&e))?;
        String::from_utf8(output.0).map_err(|_| TemplateError::Render("output is not UTF-8".into()))
    }
}

fn failure(error: &Error) -> TemplateError {
    match error.kind() {
        ErrorKind::OutOfFuel => return TemplateError::Limit("work"),
        ErrorKind::WriteFailure => return TemplateError::Limit("output"),
        _ => {}
    }
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(Raised(message)) = error.downcast_ref() {
            return TemplateError::Refused(short(message));
        }
        cause = error.source();
    }
    TemplateError::Render(short(&error.to_string()))
}

/// Training marks that Jinja does not know become blocks that are always taken; white space control
/// stays as it is.
fn without_generation_tags(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        text.push_str(before);
        rest = tag;
        let Some(end) = tag.find("%}") else { break };
        let is_mark = |c: char| c == '-' || c == '+' || c.is_whitespace();
        let plain = match tag[..end].trim_matches(is_mark) {
            "generation" => "if true",
            "endgeneration" => "endif",
            _ => continue,
        };
        let inner = &tag[..end];
        let (open, close) =
            (inner.len() - inner.trim_start_matches(is_mark).len(), inner.trim_end_matches(is_mark).len());
        text.push_str(&inner[..open]);
        text.push_str(plain);
        text.push_str(&inner[close..]);
        rest = &tag[end..];
    }
    text + rest
}

/// Refuses to grow over [`OUTPUT_BYTES_MAX`].
struct LimitedWriter(Vec<u8>);

impl io::Write for LimitedWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > OUTPUT_BYTES_MAX {
            return Err(io::Error::other("output limit"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
