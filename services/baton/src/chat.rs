//! `baton chat`: one question, or a conversation on standard input.

use std::io::{IsTerminal as _, Write as _};

use anyhow::Context as _;
use futures::StreamExt as _;
use rpc::inference::{
    CallMeta, ChatMessage, Continuity, GenerateCall, GenerationOptions, InferenceApi as _, InferenceClient,
    InferenceEvent, Input, StreamEnd,
};

use crate::cli::ChatArgs;

pub(crate) async fn run(args: ChatArgs) -> anyhow::Result<()> {
    let client = InferenceClient::new(&args.grpc).with_context(|| format!("--grpc {}", args.grpc))?;
    let models = client.models().await.with_context(|| format!("no router answers at {}", args.grpc))?;
    let model = models.first().context("the router serves no model")?.id.clone();
    let mut messages: Vec<ChatMessage> = args.system.iter().map(|text| message("system", text.clone())).collect();
    if let Some(text) = &args.message {
        messages.push(message("user", text.clone()));
        answer(&client, &model, &messages, &args).await?;
        return Ok(());
    }
    while let Some(line) = read_line().await? {
        if line.trim().is_empty() {
            continue;
        }
        messages.push(message("user", line));
        let text = answer(&client, &model, &messages, &args).await?;
        messages.push(message("assistant", text));
    }
    Ok(())
}

fn message(role: &str, content: String) -> ChatMessage {
    ChatMessage { role: role.to_owned(), content, name: None }
}

/// `None` at the end of the input.
async fn read_line() -> anyhow::Result<Option<String>> {
    let line = tokio::task::spawn_blocking(|| {
        if std::io::stdin().is_terminal() {
            print("> ");
        }
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).map(|n| (n > 0).then_some(line))
    });
    Ok(line.await??.map(|l| l.trim_end_matches(['\r', '\n']).to_owned()))
}

/// Streams one answer to standard output and returns it.
async fn answer(
    client: &InferenceClient,
    model: &str,
    messages: &[ChatMessage],
    args: &ChatArgs,
) -> anyhow::Result<String> {
    let mut options = GenerationOptions { n: 1, seed: args.seed, ..GenerationOptions::default() };
    options.stop.max_tokens = args.max_tokens;
    options.sampling.temperature = args.temperature;
    let call = GenerateCall { model: model.to_owned(), input: Input::Chat(messages.to_vec()), options };
    let asked = std::time::Instant::now();
    let generation = client.generate(call, CallMeta::default()).await?;
    let (mut events, mut text, mut end, mut first) = (generation.events, String::new(), None, None);
    while let Some(event) = events.next().await {
        match event? {
            InferenceEvent::Delta(delta) => {
                if !delta.text.is_empty() {
                    first.get_or_insert_with(|| asked.elapsed());
                }
                if !args.json {
                    print(&delta.text);
                }
                text.push_str(&delta.text);
            }
            InferenceEvent::End(stream_end) => end = Some(stream_end),
        }
    }
    let end = end.context("the stream ended without an end: the answer is not complete")?;
    if args.json {
        print(&format!("{}\n", json(&text, &end)));
    } else {
        print("\n");
        if args.timeline {
            print(&timeline(&end, first.unwrap_or_default(), asked.elapsed()));
        }
    }
    Ok(text)
}

/// The phases of one answer, a line each.
fn timeline(end: &StreamEnd, first_token: std::time::Duration, total: std::time::Duration) -> String {
    let line = &end.timeline;
    let millis = |d: std::time::Duration| d.as_secs_f64() * 1e3;
    let mut out = String::from("\n");
    for (phase, time) in line.phases.iter() {
        out.push_str(&format!("  {:<14} {:>9.2} ms\n", phase.as_str(), millis(time)));
    }
    out.push_str(&format!(
        "  first token {:.2} ms, whole answer {:.2} ms, {} prompt and {} answer tokens\n",
        millis(first_token),
        millis(total),
        end.usage.prompt_tokens,
        end.usage.completion_tokens
    ));
    if line.prefill_worker.is_empty() {
        out.push_str(&format!("  computed by {} alone\n", line.decode_worker));
    } else {
        out.push_str(&format!(
            "  {} -> {}: {} bytes of KV over {}\n",
            line.prefill_worker, line.decode_worker, line.kv_bytes, line.transport
        ));
    }
    if line.continuity == Continuity::Equivalent {
        out.push_str("  workers of unequal numerics took part: the answer is equivalent, not identical\n");
    }
    out
}

fn json(text: &str, end: &StreamEnd) -> serde_json::Value {
    let phases: serde_json::Map<_, _> =
        end.timeline.phases.iter().map(|(p, d)| (p.as_str().to_owned(), d.as_secs_f64().into())).collect();
    serde_json::json!({
        "text": text,
        "usage": {
            "prompt_tokens": end.usage.prompt_tokens,
            "completion_tokens": end.usage.completion_tokens,
            "cached_tokens": end.usage.cached_tokens,
        },
        "phases_s": phases,
        "prefill_worker": end.timeline.prefill_worker,
        "decode_worker": end.timeline.decode_worker,
        "kv_bytes": end.timeline.kv_bytes,
        "transport": end.timeline.transport,
        "continuity": end.timeline.continuity.as_str(),
    })
}

/// Writes at once; a closed pipe ends the program quietly later, not with a panic here.
fn print(text: &str) {
    let mut out = std::io::stdout();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
