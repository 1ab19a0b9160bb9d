//! Reading a body: bounded in bytes, time and depth, and refused with the name of the field that is wrong.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt as _;
use serde::de::DeserializeOwned;
use types::{Code, Failure};

use super::error::ApiError;
use crate::config::Limits;

/// Of a body that is refused, so much is still read: a client that is still writing would not see the answer.
const DRAIN_BYTES: usize = 64 << 20;
const DRAIN_TIME: Duration = Duration::from_secs(2);
/// Longest explanation of what is wrong with a body, characters.
const MESSAGE_CHARS: usize = 200;

/// The whole body.
pub(super) async fn read(headers: &HeaderMap, body: Body, limits: &Limits) -> Result<Bytes, ApiError> {
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|n| n > limits.body_bytes as u64) {
        // A client that waits for leave to send has nothing under way.
        if !headers.contains_key(header::EXPECT) {
            drain(body).await;
        }
        return Err(too_large(limits));
    }
    match tokio::time::timeout(limits.read_time, collect(body, limits)).await {
        Ok(read) => read,
        Err(_) => {
            let failure = Failure::new(Code::InvalidArgument, "BODY_TIMEOUT", "the body did not come in time");
            Err(ApiError::with_status(StatusCode::REQUEST_TIMEOUT, failure))
        }
    }
}

async fn collect(mut body: Body, limits: &Limits) -> Result<Bytes, ApiError> {
    let mut whole = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Failure::invalid("body", "the body could not be read"))?;
        let Ok(data) = frame.into_data() else { continue };
        if whole.len() + data.len() > limits.body_bytes {
            drain(body).await;
            return Err(too_large(limits));
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole.into())
}

async fn drain(mut body: Body) {
    let read = async {
        let mut left = DRAIN_BYTES;
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
            if left == 0 {
                break;
            }
        }
    };
    // Nothing hangs on it: the answer is the same.
    let _ = tokio::time::timeout(DRAIN_TIME, read).await;
}

fn too_large(limits: &Limits) -> ApiError {
    let message = format!("the body is longer than {} bytes", limits.body_bytes);
    ApiError::with_status(StatusCode::PAYLOAD_TOO_LARGE, Failure::new(Code::InvalidArgument, "BODY_TOO_LARGE", message))
}

/// A body as JSON.
///
/// # Errors
/// What is not UTF-8, not JSON, too deep, or of another type; the path of the field is the failure's `param`.
pub(super) fn parse<T: DeserializeOwned>(body: &[u8], limits: &Limits) -> Result<T, Failure> {
    let bad =
        |reason, message: String, param| Failure { param, ..Failure::new(Code::InvalidArgument, reason, message) };
    let text = std::str::from_utf8(body).map_err(|_| bad("INVALID_JSON", "the body is not UTF-8".into(), None))?;
    if is_deeper(body, limits.json_depth) {
        let message = format!("the body is nested more than {} levels deep", limits.json_depth);
        return Err(bad("JSON_TOO_DEEP", message, None));
    }
    if text.trim_ascii_start().starts_with('[') {
        // What is read as a struct would be read from an array too, by position.
        return Err(bad("INVALID_ARGUMENT", "the body must be a JSON object".into(), None));
    }
    let mut json = serde_json::Deserializer::from_str(text);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        // The root, or a key that was cut off.
        let param = (!matches!(path.as_str(), "." | "?")).then(|| short(&path));
        let inner = error.into_inner();
        let message = short(&inner.to_string());
        match inner.classify() {
            serde_json::error::Category::Data => match &param {
                Some(path) => bad("INVALID_ARGUMENT", format!("{path}: {message}"), param.clone()),
                None => bad("INVALID_ARGUMENT", message, None),
            },
            _ => bad("INVALID_JSON", format!("the body is not valid JSON: {message}"), param),
        }
    })?;
    json.end().map_err(|error| bad("INVALID_JSON", format!("the body is not valid JSON: {error}"), None))?;
    Ok(value)
}

fn short(text: &str) -> String {
    text.chars().take(MESSAGE_CHARS).collect()
}

/// Whether brackets outside strings nest deeper than `limit`. Says nothing about validity.
fn is_deeper(json: &[u8], limit: usize) -> bool {
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    for &byte in json {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'[' | b'{' => {
                depth += 1;
                if depth > limit {
                    return true;
                }
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_counts_brackets_outside_strings() {
        let deep = |n: usize| "[".repeat(n) + &"]".repeat(n);
        assert!(!is_deeper(deep(64).as_bytes(), 64));
        assert!(is_deeper(deep(65).as_bytes(), 64));
        assert!(is_deeper("{\"a\":".repeat(100_000).as_bytes(), 64));
        assert!(!is_deeper(br#"{"a": "[[[[ \" [[[["}"#, 1));
        assert!(!is_deeper("[],".repeat(1000).as_bytes(), 1));
    }

    #[test]
    fn refusals_name_the_field() {
        #[derive(serde::Deserialize, Debug)]
        #[allow(dead_code)]
        struct Outer {
            list: Vec<Inner>,
            n: Option<u32>,
        }
        #[derive(serde::Deserialize, Debug)]
        #[allow(dead_code)]
        struct Inner {
            text: String,
        }
        let check = |body: &[u8], reason: &str, param: Option<&str>| {
            let failure = parse::<Outer>(body, &Limits::default()).expect_err("wrong");
            assert_eq!((failure.reason, failure.param.as_deref()), (reason, param), "{}", failure.message);
            assert!(failure.message.len() < 300);
        };
        check(br#"{"list": [{"text": "a"}, {"text": 1}]}"#, "INVALID_ARGUMENT", Some("list[1].text"));
        check(br#"{"list": [], "n": -1}"#, "INVALID_ARGUMENT", Some("n"));
        check(br#"{"list": [], "n": NaN}"#, "INVALID_JSON", Some("n"));
        check(br#"{"list": [], "n": 1e999}"#, "INVALID_JSON", Some("n"));
        check(br#"{"list": []} x"#, "INVALID_JSON", None);
        check(b"{\"list\": [\"\xff\"]}", "INVALID_JSON", None);
        check(b"", "INVALID_JSON", None);
        check(b"[]", "INVALID_ARGUMENT", None);
        check("[".repeat(100_000).as_bytes(), "JSON_TOO_DEEP", None);
        check(format!("{{\"unknown\": {}", "[".repeat(100_000)).as_bytes(), "JSON_TOO_DEEP", None);
    }
}
