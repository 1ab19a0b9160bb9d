//! HTTP/1.1 by hand: what goes over the wire is what a test says, and leaving is dropping the socket.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
    pub time: Duration,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let line = |line: &'_ str| line.split_once(": ").is_some_and(|(n, _)| n.eq_ignore_ascii_case(name));
        self.head.lines().find(|l| line(l)).and_then(|l| l.split_once(": ")).map(|(_, value)| value)
    }

    /// Payloads of the server-sent events; `[DONE]` as a string.
    pub fn events(&self) -> Vec<Value> {
        let payload = |data: &str| match data {
            "[DONE]" => Value::String(data.into()),
            json => serde_json::from_str(json).unwrap_or_else(|e| panic!("{e}: {json}")),
        };
        self.text().split("\n\n").filter_map(|event| event.strip_prefix("data: ")).map(payload).collect()
    }

    /// Text of one choice of a text completion's stream.
    pub fn streamed_text(&self, index: u64) -> String {
        let mut text = String::new();
        for event in self.events() {
            for choice in event["choices"].as_array().into_iter().flatten() {
                if choice["index"] == index {
                    text += choice["text"].as_str().or(choice["delta"]["content"].as_str()).unwrap_or_default();
                }
            }
        }
        text
    }
}

/// A request whose answer is being read.
pub struct Open {
    socket: TcpStream,
    raw: Vec<u8>,
    begun: Instant,
}

impl Open {
    pub async fn send(address: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Self {
        let begun = Instant::now();
        let mut socket = TcpStream::connect(address).await.expect("the router listens");
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: router\r\nconnection: close\r\n");
        head += &format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len());
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += "\r\n";
        socket.write_all(head.as_bytes()).await.expect("writes");
        socket.write_all(body).await.expect("writes");
        Self { socket, raw: Vec::new(), begun }
    }

    /// Reads until the answer so far contains `part`.
    pub async fn until(&mut self, part: &str) {
        while !String::from_utf8_lossy(&self.raw).contains(part) {
            let n = self.socket.read_buf(&mut self.raw).await.expect("reads");
            assert!(n > 0, "ended without {part:?}: {}", String::from_utf8_lossy(&self.raw));
        }
    }

    /// Reads to the end.
    pub async fn rest(mut self) -> Answer {
        let read = self.socket.read_to_end(&mut self.raw);
        tokio::time::timeout(Duration::from_secs(20), read).await.expect("in time").expect("reads");
        let end = self.raw.windows(4).position(|w| w == b"\r\n\r\n").unwrap_or_else(|| {
            panic!("an answer has a head: {:?}", String::from_utf8_lossy(&self.raw));
        });
        let head = String::from_utf8_lossy(&self.raw[..end]).into_owned();
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("a status line");
        let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
        let body = &self.raw[end + 4..];
        let body = if chunked { unchunked(body) } else { body.to_vec() };
        Answer { status, head, body, time: self.begun.elapsed() }
    }
}

pub async fn call(address: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    Open::send(address, method, path, headers, body).await.rest().await
}

fn unchunked(mut body: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    loop {
        let line = body.windows(2).position(|w| w == b"\r\n").expect("a chunk has a size");
        let size = usize::from_str_radix(std::str::from_utf8(&body[..line]).expect("text"), 16).expect("hex");
        body = &body[line + 2..];
        if size == 0 {
            return whole;
        }
        whole.extend_from_slice(&body[..size]);
        body = &body[size + 2..];
    }
}
