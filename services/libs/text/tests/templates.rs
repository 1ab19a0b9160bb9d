//! Chat templates against Python's jinja2 (`data/make_templates.py`), and what they may not do.

use std::time::{Duration, Instant};

use serde_json::{Map, Value};
use text::{ChatTemplate, Message, SpecialTokens, TemplateError, TemplateOptions};

fn golden() -> Value {
    serde_json::from_str(include_str!("data/templates.json")).unwrap()
}

fn messages(chat: &Value) -> Vec<Message> {
    let text = |v: &Value| v.as_str().map(str::to_owned);
    let message = |m: &Value| Message {
        role: text(&m["role"]).unwrap(),
        content: text(&m["content"]).unwrap(),
        name: text(&m["name"]),
    };
    chat.as_array().unwrap().iter().map(message).collect()
}

fn user(content: &str) -> Vec<Message> {
    vec![Message { role: "user".into(), content: content.into(), name: None }]
}

fn render(source: &str, messages: &[Message]) -> Result<String, TemplateError> {
    ChatTemplate::new(source, &SpecialTokens::new())?.render(messages, &TemplateOptions::default())
}

#[test]
fn equals_jinja2() {
    let golden = golden();
    let special: SpecialTokens = serde_json::from_value(golden["special"].clone()).unwrap();
    for case in golden["cases"].as_array().unwrap() {
        let name = case["template"].as_str().unwrap();
        let template = ChatTemplate::new(golden["templates"][name].as_str().unwrap(), &special).unwrap();
        let options = TemplateOptions {
            add_generation_prompt: case["add_generation_prompt"].as_bool().unwrap(),
            now: Duration::from_secs(golden["now"].as_u64().unwrap()),
            variables: golden["variables"][case["variables"].as_u64().unwrap() as usize].as_object().unwrap().clone(),
        };
        let chat = messages(&golden["chats"][case["chat"].as_u64().unwrap() as usize]);
        match (template.render(&chat, &options), case["text"].as_str(), case["refused"].as_str()) {
            (Ok(text), Some(expected), None) => assert_eq!(text, expected, "{name} {case}"),
            (Err(TemplateError::Refused(message)), None, Some(expected)) => assert_eq!(message, expected, "{name}"),
            (found, _, _) => panic!("{name}: {found:?}, expected {case}"),
        }
    }
}

#[test]
fn what_is_wrong_is_an_error() {
    let check = |source: &str, expected: fn(&TemplateError) -> bool| {
        let error = render(source, &user("hi")).unwrap_err();
        assert!(expected(&error), "{source}: {error:?}");
        assert!(error.to_string().chars().count() < 300, "{error}");
    };
    check("{% if %}", |e| matches!(e, TemplateError::Compile(_)));
    check("{{ 'x' }", |e| matches!(e, TemplateError::Compile(_)));
    check(&"{% if true %}".repeat(10_000), |e| matches!(e, TemplateError::Compile(_)));
    check(&format!("{{{{ {}1{} }}}}", "(".repeat(10_000), ")".repeat(10_000)), |e| {
        matches!(e, TemplateError::Compile(_))
    });
    check(&"x".repeat(2 << 20), |e| matches!(e, TemplateError::Limit(_)));
    check(
        "{{ raise_exception('no ' ~ messages[0].content * 1000) }}",
        |e| matches!(e, TemplateError::Refused(m) if m.starts_with("no hihi")),
    );
    check("{{ missing.attribute }}", |e| matches!(e, TemplateError::Render(_)));
    check("{{ messages[0].nothing() }}", |e| matches!(e, TemplateError::Render(_)));
    check("{{ strftime_now('%Q') }}", |e| matches!(e, TemplateError::Render(_)));
    check("{% include 'other' %}", |e| matches!(e, TemplateError::Render(_)));
    check("{{ missing | tojson }}", |e| matches!(e, TemplateError::Render(_)));
    let unknown = Message { role: "<|im_end|>".into(), content: String::new(), name: None };
    assert_eq!(render("x", &[user("")[0].clone(), unknown]), Err(TemplateError::UnknownRole { index: 1 }));
}

#[test]
fn work_depth_and_output_are_limited() {
    for source in [
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 'x' * 1000000000 }}",
        "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{% set ns = namespace(l=[1]) %}{% for i in range(40) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l | tojson }}",
        "{% set ns = namespace(l=[1]) %}{% for i in range(40) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}",
        "{% for i in range(20000) %}{{ messages[0].content * 20 }}{% endfor %}",
        "{{ ('x' * 1000000).split('') }}",
        "{{ range(100000) | list | tojson(indent=60) }}{{ range(100000) | list | tojson(indent=60) }}",
        "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
        "{{ '%1000000000d' | format(1) }}",
        "{{ ('x' * 30000) | indent(30000) | wordwrap(1) }}",
    ] {
        let start = Instant::now();
        let error = render(source, &user(&"hello ".repeat(10))).unwrap_err();
        assert!(start.elapsed() < Duration::from_secs(5), "{source}: {:?}", start.elapsed());
        assert!(matches!(error, TemplateError::Limit(_) | TemplateError::Render(_)), "{source}: {error:?}");
    }
}

#[test]
fn long_chats_and_long_messages_fit() {
    let golden = golden();
    for name in ["chatml", "llama3", "qwen3"] {
        let source = golden["templates"][name].as_str().unwrap();
        let text = render(source, &user(&"word ".repeat(200_000))).unwrap();
        assert!(text.len() > 1_000_000);
        let mut chat = Vec::new();
        for i in 0..1000 {
            chat.extend(user(&format!("question {i}")));
            chat.push(Message { role: "assistant".into(), content: format!("answer {i}"), name: None });
        }
        assert!(render(source, &chat).unwrap().contains("answer 999"));
    }
}

#[test]
fn variables_cannot_replace_the_conversation() {
    let mut variables = Map::new();
    variables.insert("messages".into(), Value::Null);
    variables.insert("extra".into(), "seen".into());
    let options = TemplateOptions { variables, ..TemplateOptions::default() };
    let template = ChatTemplate::new("{{ messages[0].content }} {{ extra }}", &SpecialTokens::new()).unwrap();
    assert_eq!(template.render(&user("hi"), &options).unwrap(), "hi seen");
}
