//! The `tojson` filter as Hugging Face defines it: Python's `json.dumps`, without HTML escapes.

use std::fmt::Write as _;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

/// Deepest nesting written.
const DEPTH_MAX: usize = 64;
/// Bytes written for one unit of fuel.
const BYTES_PER_FUEL: u64 = 16;

/// `tojson(ensure_ascii=false, indent=none, separators=none, sort_keys=false)`.
pub(super) fn tojson(
    state: &State<'_, '_>,
    value: &Value,
    ensure_ascii: Option<bool>,
    options: Kwargs,
) -> Result<Value, Error> {
    let named: Option<bool> = options.get("ensure_ascii")?;
    let indent: Option<Value> = options.get("indent")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    let sort_keys: Option<bool> = options.get("sort_keys")?;
    options.assert_all_used()?;
    let indent = match indent.filter(|v| !v.is_none()) {
        None => None,
        Some(v) => Some(v.as_str().map(str::to_owned).map_or_else(|| spaces(&v), Ok)?),
    };
    let comma = if indent.is_some() { "," } else { ", " };
    let [comma, colon] = match separators.as_deref() {
        Some([comma, colon]) => [comma.as_str(), colon.as_str()],
        Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "separators must be two strings")),
        None => [comma, ": "],
    };
    let ensure_ascii = ensure_ascii.or(named).unwrap_or(false);
    let mut writer = Writer {
        charge: &|fuel| state.consume_fuel(fuel),
        text: String::new(),
        ensure_ascii,
        indent: indent.as_deref(),
        comma,
        colon,
        sort_keys: sort_keys == Some(true),
    };
    writer.value(value, 0)?;
    Ok(Value::from(writer.text))
}

fn spaces(indent: &Value) -> Result<String, Error> {
    let n = indent.as_usize().filter(|&n| n <= DEPTH_MAX);
    n.map(|n| " ".repeat(n)).ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "indent is not a small number"))
}

/// Charges fuel for every byte as it is written, so that a small value repeated often cannot grow large.
struct Writer<'a> {
    charge: &'a dyn Fn(u64) -> Result<(), Error>,
    text: String,
    ensure_ascii: bool,
    indent: Option<&'a str>,
    comma: &'a str,
    colon: &'a str,
    sort_keys: bool,
}

impl Writer<'_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > DEPTH_MAX {
            return Err(Error::new(ErrorKind::BadSerialization, "value is nested too deep"));
        }
        let before = self.text.len();
        match value.kind() {
            ValueKind::None => self.text.push_str("null"),
            ValueKind::Bool => self.text.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number if value.is_integer() => _ = write!(self.text, "{value}"),
            ValueKind::Number => self.float(f64::try_from(value.clone())?),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => return self.sequence(value, depth),
            ValueKind::Map => return self.map(value, depth),
            kind => return Err(Error::new(ErrorKind::BadSerialization, format!("{kind} is not JSON serializable"))),
        }
        (self.charge)(1 + (self.text.len() - before) as u64 / BYTES_PER_FUEL)
    }

    fn sequence(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        self.text.push('[');
        let mut n = 0;
        for item in value.try_iter()? {
            self.separate(n, depth + 1);
            self.value(&item, depth + 1)?;
            n += 1;
        }
        self.close(']', n, depth);
        Ok(())
    }

    fn map(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        let mut keys: Vec<Value> = value.try_iter()?.collect();
        if self.sort_keys {
            keys.sort();
        }
        self.text.push('{');
        for (i, key) in keys.iter().enumerate() {
            self.separate(i, depth + 1);
            match key.as_str() {
                Some(text) => self.string(text),
                None => self.string(&key.to_string()),
            }
            self.text.push_str(self.colon);
            self.value(&value.get_item(key)?, depth + 1)?;
        }
        self.close('}', keys.len(), depth);
        Ok(())
    }

    fn separate(&mut self, index: usize, depth: usize) {
        if index > 0 {
            self.text.push_str(self.comma);
        }
        self.line(depth);
    }

    fn close(&mut self, bracket: char, n_items: usize, depth: usize) {
        if n_items > 0 {
            self.line(depth);
        }
        self.text.push(bracket);
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = self.indent {
            self.text.push('\n');
            (0..depth).for_each(|_| self.text.push_str(indent));
        }
    }

    fn string(&mut self, text: &str) {
        self.text.push('"');
        for c in text.chars() {
            match c {
                '"' => self.text.push_str("\\\""),
                '\\' => self.text.push_str("\\\\"),
                '\n' => self.text.push_str("\\n"),
                '\r' => self.text.push_str("\\r"),
                '\t' => self.text.push_str("\\t"),
                '\u{8}' => self.text.push_str("\\b"),
                '\u{c}' => self.text.push_str("\\f"),
                c if c < ' ' || self.ensure_ascii && !(' '..='~').contains(&c) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        _ = write!(self.text, "\\u{unit:04x}");
                    }
                }
                c => self.text.push(c),
            }
        }
        self.text.push('"');
    }

    /// As Python's `repr`: the exponent has a sign and two digits.
    fn float(&mut self, number: f64) {
        let text = if number.is_finite() {
            format!("{number:?}")
        } else if number.is_nan() {
            "NaN".into()
        } else {
            format!("{number}").replace("inf", "Infinity")
        };
        match text.split_once('e') {
            Some((digits, exponent)) => {
                let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |e| ('-', e));
                _ = write!(self.text, "{digits}e{sign}{exponent:0>2}");
            }
            None => self.text.push_str(&text),
        }
    }
}
