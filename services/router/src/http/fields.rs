//! Fields of request bodies that come in more than one form.

use std::fmt;

use rpc::inference::Input;
use serde::Deserialize;
use serde::de::{self, IgnoredAny, MapAccess, SeqAccess, Visitor};
use types::TokenId;

/// Whether a field is there and says something: not null, false, 0 or empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Used(pub(super) bool);

impl<'de> Deserialize<'de> for Used {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Used;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }

            fn visit_bool<E>(self, v: bool) -> Result<Used, E> {
                Ok(Used(v))
            }

            fn visit_i64<E>(self, v: i64) -> Result<Used, E> {
                Ok(Used(v != 0))
            }

            fn visit_u64<E>(self, v: u64) -> Result<Used, E> {
                Ok(Used(v != 0))
            }

            fn visit_f64<E>(self, v: f64) -> Result<Used, E> {
                Ok(Used(v != 0.0))
            }

            fn visit_str<E>(self, v: &str) -> Result<Used, E> {
                Ok(Used(!v.is_empty() && v != "none"))
            }

            fn visit_unit<E>(self) -> Result<Used, E> {
                Ok(Used(false))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Used, A::Error> {
                let mut used = false;
                while seq.next_element::<IgnoredAny>()?.is_some() {
                    used = true;
                }
                Ok(Used(used))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Used, A::Error> {
                let mut used = false;
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
                    used = true;
                }
                Ok(Used(used))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// A message's text: a string, or text parts, joined by line ends.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Content(pub(super) String);

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Part {
            r#type: String,
            #[serde(default)]
            text: Option<String>,
        }
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Content;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or an array of text parts")
            }

            fn visit_str<E: de::Error>(self, v: &str) -> Result<Content, E> {
                Ok(Content(v.to_owned()))
            }

            fn visit_string<E: de::Error>(self, v: String) -> Result<Content, E> {
                Ok(Content(v))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Content, A::Error> {
                let mut text: Option<String> = None;
                while let Some(part) = seq.next_element::<Part>()? {
                    let (true, Some(part)) = (part.r#type == "text", part.text) else {
                        return Err(de::Error::custom("only parts of type text, with a text, are supported"));
                    };
                    match &mut text {
                        None => text = Some(part),
                        Some(text) => {
                            text.push('\n');
                            text.push_str(&part);
                        }
                    }
                }
                text.map(Content).ok_or_else(|| de::Error::custom("an array of parts must not be empty"))
            }
        }
        deserializer.deserialize_any(Text)
    }
}

/// A text, token ids, or a list of either.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Prompt(pub(super) Vec<Input>);

impl<'de> Deserialize<'de> for Prompt {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        const EXPECTED: &str = "a string, an array of token ids, or an array of either";

        /// An element of the outer array.
        enum Item {
            Text(String),
            Id(TokenId),
            Ids(Vec<TokenId>),
        }
        impl<'de> Deserialize<'de> for Item {
            fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct One;
                impl<'de> Visitor<'de> for One {
                    type Value = Item;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str("a string, a token id or an array of token ids")
                    }

                    fn visit_str<E: de::Error>(self, v: &str) -> Result<Item, E> {
                        Ok(Item::Text(v.to_owned()))
                    }

                    fn visit_string<E: de::Error>(self, v: String) -> Result<Item, E> {
                        Ok(Item::Text(v))
                    }

                    fn visit_u64<E: de::Error>(self, v: u64) -> Result<Item, E> {
                        let id = TokenId::try_from(v).map_err(|_| E::custom("a token id is too large"))?;
                        Ok(Item::Id(id))
                    }

                    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Item, A::Error> {
                        let mut ids = Vec::new();
                        while let Some(id) = seq.next_element()? {
                            ids.push(id);
                        }
                        Ok(Item::Ids(ids))
                    }
                }
                deserializer.deserialize_any(One)
            }
        }

        struct Whole;
        impl<'de> Visitor<'de> for Whole {
            type Value = Prompt;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(EXPECTED)
            }

            fn visit_str<E: de::Error>(self, v: &str) -> Result<Prompt, E> {
                Ok(Prompt(vec![Input::Text(v.to_owned())]))
            }

            fn visit_string<E: de::Error>(self, v: String) -> Result<Prompt, E> {
                Ok(Prompt(vec![Input::Text(v)]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Prompt, A::Error> {
                let (mut prompts, mut ids) = (Vec::new(), Vec::new());
                while let Some(item) = seq.next_element()? {
                    match item {
                        Item::Text(text) => prompts.push(Input::Text(text)),
                        Item::Ids(list) => prompts.push(Input::Ids(list)),
                        Item::Id(id) => ids.push(id),
                    }
                    if !prompts.is_empty() && !ids.is_empty() {
                        return Err(de::Error::custom(format_args!("expected {EXPECTED}")));
                    }
                }
                Ok(Prompt(if ids.is_empty() { prompts } else { vec![Input::Ids(ids)] }))
            }
        }
        deserializer.deserialize_any(Whole)
    }
}

/// One stop string or several.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stop(pub(super) Vec<String>);

impl<'de> Deserialize<'de> for Stop {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Strings;
        impl<'de> Visitor<'de> for Strings {
            type Value = Stop;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or an array of strings")
            }

            fn visit_str<E: de::Error>(self, v: &str) -> Result<Stop, E> {
                Ok(Stop(vec![v.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Stop, A::Error> {
                let mut stops = Vec::new();
                while let Some(stop) = seq.next_element()? {
                    stops.push(stop);
                }
                Ok(Stop(stops))
            }
        }
        deserializer.deserialize_any(Strings)
    }
}

/// Any 64-bit integer, signed or not.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Seed(pub(super) u64);

impl<'de> Deserialize<'de> for Seed {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Integer;
        impl Visitor<'_> for Integer {
            type Value = Seed;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a 64-bit integer")
            }

            fn visit_u64<E: de::Error>(self, v: u64) -> Result<Seed, E> {
                Ok(Seed(v))
            }

            fn visit_i64<E: de::Error>(self, v: i64) -> Result<Seed, E> {
                Ok(Seed(v.cast_unsigned()))
            }
        }
        deserializer.deserialize_any(Integer)
    }
}

/// Chat says whether, text completions say how many.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Logprobs {
    Flag(bool),
    Count(u32),
}

impl<'de> Deserialize<'de> for Logprobs {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = Logprobs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true, false or a number of alternatives")
            }

            fn visit_bool<E: de::Error>(self, v: bool) -> Result<Logprobs, E> {
                Ok(Logprobs::Flag(v))
            }

            fn visit_u64<E: de::Error>(self, v: u64) -> Result<Logprobs, E> {
                Ok(Logprobs::Count(u32::try_from(v).unwrap_or(u32::MAX)))
            }
        }
        deserializer.deserialize_any(Either)
    }
}
