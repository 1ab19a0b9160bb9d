//! Bad safetensors files are refused with the field named: never a panic, never a wrong range.

mod common;

use proptest::prelude::*;

use common::{changes, open_safetensors, sample_safetensors, with_header};

fn check(bytes: Vec<u8>, want: &str) {
    let message = open_safetensors(bytes).expect_err(want).to_string();
    assert_eq!(message, format!("m.safetensors: {want}"));
}

/// One tensor `t` with these fields, over `n_data` bytes.
fn check_tensor(fields: &str, n_data: usize, want: &str) {
    check(with_header(&format!(r#"{{"t":{{{fields}}}}}"#), n_data), want);
}

/// Like [`check_tensor`] for errors of the JSON itself, whose text ends in a line and column.
fn check_json(header: &str, want: &str) {
    let message = open_safetensors(with_header(header, 8)).expect_err(want).to_string();
    assert!(message.starts_with(&format!("m.safetensors: {want}")), "{message:?} is not {want:?}");
}

#[test]
fn the_header_length_is_checked() {
    let past =
        |n: u64, size: usize| format!("header length: offset 8 + {n} bytes is past the end of the file ({size} bytes)");
    check(vec![], "header length: offset 0 + 8 bytes is past the end of the file (0 bytes)");
    check(vec![1; 7], "header length: offset 0 + 8 bytes is past the end of the file (7 bytes)");
    check(3u64.to_le_bytes().to_vec(), &past(3, 8));
    check([u64::MAX.to_le_bytes(), [b'{'; 8]].concat(), &past(u64::MAX, 16));
    check(with_header(&"{".repeat(100_000_001), 0), "header length: 100000001 is over the limit of 100000000");
}

#[test]
fn the_header_is_one_object() {
    let not_ours = "is not a safetensors file: its header does not begin with \"{\"";
    check(with_header("", 0), not_ours);
    check(with_header(" {}", 0), not_ours);
    check(with_header("[]", 0), not_ours);
    check_json("{", "header: EOF while parsing");
    check_json("{}}", "header: trailing characters");
    check_json("{\"a\"", "header: \"a\": EOF while parsing");
    check_json("{\"\u{1}\":1}", "header: control character");
    check_json(r#"{"__metadata__":{"a":1}}"#, r#"header: "__metadata__": invalid type: integer"#);
    check_json(r#"{"__metadata__":{"a":"","a":""}}"#, r#"header: "__metadata__": key "a" occurs twice"#);
    check_json(r#"{"__metadata__":{},"__metadata__":{}}"#, r#"header: "__metadata__": occurs twice"#);
    let many: Vec<String> = (0..5000).map(|i| format!(r#""{i}":"""#)).collect();
    let many = format!(r#"{{"__metadata__":{{{}}}}}"#, many.join(","));
    check_json(&many, r#"header: "__metadata__": is over the limit of 4096 keys"#);
    let not_utf8 = [&8u64.to_le_bytes()[..], b"{\"\xff\":1}\x20"].concat();
    let message = open_safetensors(not_utf8).expect_err("not UTF-8").to_string();
    assert!(message.starts_with("m.safetensors: header: invalid unicode"), "{message}");
}

#[test]
fn deep_json_is_refused() {
    check_json(&format!(r#"{{"t":{}"#, "[".repeat(100_000)), r#"header: "t": invalid type: sequence"#);
    let shape = format!(r#"{{"t":{{"shape":{}"#, "[".repeat(100_000));
    check_json(&shape, r#"header: "t": invalid type: sequence"#);
    let unknown = format!(r#"{{"t":{{"other":{}"#, "{\"a\":".repeat(100_000));
    check_json(&unknown, r#"header: "t": unknown field"#);
}

#[test]
fn entries_are_complete_and_bounded() {
    let json =
        |fields: &str, want: &str| check_json(&format!(r#"{{"t":{{{fields}}}}}"#), &format!(r#"header: "t": {want}"#));
    json(r#""shape":[2],"data_offsets":[0,8]"#, "missing field `dtype`");
    json(r#""dtype":"F32","data_offsets":[0,8]"#, "missing field `shape`");
    json(r#""dtype":"F32","shape":[2]"#, "missing field `data_offsets`");
    json(r#""dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]"#, "duplicate field `dtype`");
    json(r#""dtype":1,"shape":[2],"data_offsets":[0,8]"#, "invalid type: integer `1`");
    json(r#""dtype":"F32","shape":[-2],"data_offsets":[0,8]"#, "invalid value: integer `-2`");
    json(r#""dtype":"F32","shape":[2.0],"data_offsets":[0,8]"#, "invalid type: floating point `2.0`");
    json(r#""dtype":"F32","shape":[1e30],"data_offsets":[0,8]"#, "invalid type: floating point `1e+30`");
    json(r#""dtype":"F32","shape":[2],"data_offsets":[0]"#, "invalid length 1");
    json(r#""dtype":"F32","shape":[2],"data_offsets":[0,8,8]"#, "trailing characters");
    json(
        r#""dtype":"F32","shape":[1,1,1,1,1,1,1,1,2],"data_offsets":[0,8]"#,
        "shape is over the limit of 8 dimensions",
    );
    let long = "n".repeat(1025);
    check_json(&format!(r#"{{"{long}":1}}"#), "header: a name of 1025 bytes is over the limit of 1024");
}

#[test]
fn types_and_shapes_are_checked() {
    let t = |dtype: &str, shape: &str, end: usize, want: &str| {
        let fields = format!(r#""dtype":"{dtype}","shape":{shape},"data_offsets":[0,{end}]"#);
        check_tensor(&fields, end, &format!(r#"tensor "t": {want}"#));
    };
    t("F99", "[2]", 8, r#"dtype: "F99" is not a type this reader knows"#);
    t("f32", "[2]", 8, r#"dtype: "f32" is not a type this reader knows"#);
    t("F32", "[3]", 8, "shape: [3] of F32 does not take the 8 bytes of data_offsets");
    t("F16", "[]", 8, "shape: [] of F16 does not take the 8 bytes of data_offsets");
    t("F4", "[3]", 1, "shape: [3] of F4 does not take the 1 bytes of data_offsets");
    t("F32", "[4294967296,4294967296]", 8, "shape: the product of [4294967296, 4294967296] overflows");
    t("F32", "[18446744073709551615]", 8, "shape: the product of [18446744073709551615] overflows");
    // 2^62 numbers of 4 bytes wrap to 0 without checks
    t("F32", "[4611686018427387904]", 0, "shape: the product of [4611686018427387904] overflows");
}

#[test]
fn ranges_cover_the_data_exactly() {
    let entry = |name: &str, begin: u64, end: u64| {
        let n = end.saturating_sub(begin) / 4;
        format!(r#""{name}":{{"dtype":"F32","shape":[{n}],"data_offsets":[{begin},{end}]}}"#)
    };
    let two = |a: (u64, u64), b: (u64, u64), n_data: usize, want: &str| {
        check(with_header(&format!("{{{},{}}}", entry("a", a.0, a.1), entry("b", b.0, b.1)), n_data), want);
    };
    two((0, 8), (4, 12), 12, r#"tensor "b": shares bytes with tensor "a""#);
    two((0, 8), (0, 8), 8, r#"tensor "b": shares bytes with tensor "a""#);
    two((0, 4), (8, 12), 12, r#"tensor "b": data begins at 8, but the data before it ends at 4"#);
    two((4, 8), (8, 12), 12, r#"tensor "a": data begins at 4, but the data before it ends at 0"#);
    two((0, 4), (4, 8), 9, "data: tensors cover 8 of 9 bytes");
    two((0, 4), (8, 4), 8, r#"tensor "b": data_offsets begin at 8 and end at 4"#);
    let past = |b: (u64, u64)| {
        let header = format!("{{{},{}}}", entry("a", 0, 4), entry("b", b.0, b.1));
        let (at, size) = ((8 + header.len() as u64).saturating_add(b.0), 8 + header.len() + 8);
        let n = b.1 - b.0;
        let want = format!(r#"tensor "b": offset {at} + {n} bytes is past the end of the file ({size} bytes)"#);
        check(with_header(&header, 8), &want);
    };
    past((4, 12));
    past((0, u64::MAX - 3));
    past((u64::MAX - 7, u64::MAX - 3));
    check(with_header(&format!("{{{},{}}}", entry("a", 0, 4), entry("a", 4, 8)), 8), r#"tensor "a": occurs twice"#);
    check(with_header("{}", 1), "data: tensors cover 0 of 1 bytes");
}

#[test]
fn every_truncation_is_refused() {
    let file = sample_safetensors().finish();
    assert!(open_safetensors(file.clone()).is_ok());
    for n in 0..file.len() {
        open_safetensors(file[..n].to_vec()).expect_err("part of a file");
    }
    open_safetensors([file, vec![0]].concat()).expect_err("one byte too many");
}

#[test]
fn one_change_anywhere_is_survived() {
    let file = sample_safetensors().finish();
    changes(&file, 0..file.len(), |changed| drop(open_safetensors(changed)));
}

proptest! {
    #[test]
    fn random_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
        prop_assert!(open_safetensors(bytes).is_err());
    }

    #[test]
    fn random_headers_are_refused(header in r#"\{[ "a-z0-9:,{}\[\]\\-]{1,80}"#) {
        prop_assume!(header.trim() != "{}");
        prop_assert!(open_safetensors(with_header(&header, 8)).is_err());
    }

    #[test]
    fn many_changes_are_survived(
        edits in prop::collection::vec((0usize..400, prop_oneof![any::<u8>(), 0x20u8..0x7f]), 1..8),
        cut in prop::option::of(0usize..500),
    ) {
        let mut file = sample_safetensors().finish();
        for (at, byte) in edits {
            let at = at % file.len();
            file[at] = byte;
        }
        file.truncate(cut.unwrap_or(usize::MAX));
        drop(open_safetensors(file));
    }
}
