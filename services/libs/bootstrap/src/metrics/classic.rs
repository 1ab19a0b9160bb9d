//! OpenMetrics text to the classic format: counters carry `_total` in their TYPE and HELP lines too, info and
//! stateset become gauges, units, exemplars and the end mark go.

use std::collections::BTreeMap;

pub(super) fn from_openmetrics(text: &str) -> String {
    let types: BTreeMap<&str, &str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    let mut out = String::with_capacity(text.len());
    for line in text.lines() {
        if let Some((name, rest)) = line.strip_prefix("# HELP ").and_then(|l| l.split_once(' ')) {
            let suffix = suffix(types.get(name).copied());
            out.push_str(&format!("# HELP {name}{suffix} {rest}\n"));
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|l| l.split_once(' ')) {
            let suffix = suffix(Some(kind));
            let kind = match kind {
                "info" | "stateset" => "gauge",
                "unknown" => "untyped",
                other => other,
            };
            out.push_str(&format!("# TYPE {name}{suffix} {kind}\n"));
        } else if !line.starts_with('#') && !line.is_empty() {
            out.push_str(without_exemplar(line));
            out.push('\n');
        }
    }
    out
}

/// What samples of this type carry at the end of their names.
fn suffix(kind: Option<&str>) -> &'static str {
    match kind {
        Some("counter") => "_total",
        Some("info") => "_info",
        _ => "",
    }
}

/// A sample up to its exemplar, which begins with ` # ` after the value; label values may hold that too.
fn without_exemplar(line: &str) -> &str {
    let labels_end = label_block_end(line);
    line[labels_end..].find(" # ").map_or(line, |at| &line[..labels_end + at])
}

/// Index after the closing brace of a sample's labels, 0 if it has none.
fn label_block_end(line: &str) -> usize {
    let Some(open) = line.find('{') else { return 0 };
    if line.find(' ').is_some_and(|space| space < open) {
        return 0;
    }
    let (mut quoted, mut escaped) = (false, false);
    for (at, c) in line[open..].char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            '}' if !quoted => return open + at + 1,
            _ => {}
        }
    }
    line.len()
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Checks each line of the classic format, as far as a scraper does.
    pub(crate) fn assert_valid(text: &str) {
        let mut families = BTreeSet::new();
        let mut typed = None;
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect("a type");
                assert!(["counter", "gauge", "histogram", "summary", "untyped"].contains(&kind), "{line}");
                assert!(families.insert(name.to_owned()), "{name} has two TYPE lines");
                assert!(kind != "counter" || name.ends_with("_total"), "{line}");
                typed = Some((name.to_owned(), kind.to_owned()));
            } else if let Some(rest) = line.strip_prefix("# HELP ") {
                assert!(rest.contains(' '), "{line}");
            } else {
                assert!(!line.starts_with('#'), "neither TYPE nor HELP: {line}");
                assert_valid_sample(line, typed.as_ref().expect("samples follow their TYPE line"));
            }
        }
        assert!(text.is_empty() || text.ends_with('\n'));
    }

    fn assert_valid_sample(line: &str, (family, kind): &(String, String)) {
        let end = label_block_end(line).max(line.find([' ', '{']).expect("a name and a value"));
        let name = &line[..line.find(['{', ' ']).expect("a name")];
        assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || "_:".contains(c)), "{line}");
        let suffixes: &[&str] = if kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
        assert!(suffixes.iter().any(|s| name == format!("{family}{s}")), "{line} is not of {family}");
        let value = line[end..].strip_prefix(' ').unwrap_or_else(|| panic!("no space before the value: {line}"));
        assert!(!value.contains(' '), "a timestamp or an exemplar: {line}");
        assert!(matches!(value, "+Inf" | "-Inf" | "NaN") || value.parse::<f64>().is_ok(), "{line}");
    }

    fn check(openmetrics: &str, classic: &str) {
        let got = from_openmetrics(openmetrics);
        assert_eq!(got, classic);
        assert_valid(&got);
    }

    #[test]
    fn converts_each_kind() {
        check("# EOF\n", "");
        check(
            "# HELP a Text with # and spaces.\n# TYPE a counter\n# UNIT a bytes\na_total{x=\"1\"} 2 # {t=\"u\"} 3.0 4\n# EOF\n",
            "# HELP a_total Text with # and spaces.\n# TYPE a_total counter\na_total{x=\"1\"} 2\n",
        );
        check("# TYPE b gauge\nb{x=\"# } \\\" # \"} -1.5\n", "# TYPE b gauge\nb{x=\"# } \\\" # \"} -1.5\n");
        check("# TYPE c info\nc_info{v=\"1\"} 1\n", "# TYPE c_info gauge\nc_info{v=\"1\"} 1\n");
        check("# TYPE d unknown\nd NaN\n", "# TYPE d untyped\nd NaN\n");
        check(
            "# TYPE e histogram\ne_bucket{le=\"+Inf\"} 1 # {id=\"}\"} 0.5\ne_count 1\ne_sum 0.5\n",
            "# TYPE e histogram\ne_bucket{le=\"+Inf\"} 1\ne_count 1\ne_sum 0.5\n",
        );
    }
}
