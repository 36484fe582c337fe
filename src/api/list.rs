//! Long lists, made piece by piece while they are sent.
//!
//! Ten thousand sandboxes are 18 MB of text, and 300 MiB as a tree of values, which the allocator would keep
//! for good. A list is a snapshot's, so nobody waits for its end, and no worker is held until then.

use std::convert::Infallible;
use std::iter::Peekable;
use std::mem;

use axum::body::{Body, Bytes};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use serde::Serialize;

use crate::api::wire;

/// A millisecond's work: large beside what sending it costs, small for those who wait meanwhile.
const PIECE_BYTES: usize = 64 * 1024;

struct List<I: Iterator> {
    items: Peekable<I>,
    /// What comes before the items, until it was sent.
    text: String,
    /// What comes after the last. None: it was sent.
    end: Option<String>,
}

/// `{"KEY":[ITEMS]REST}`
pub(super) fn answer<I>(key: &str, items: I, rest: &str) -> Response
where
    I: Iterator<Item: Serialize + Send> + Send + 'static,
{
    let kind = [(CONTENT_TYPE, "application/json")];
    let mut list = List::new(key, items, rest);
    let first = list.piece().unwrap_or_default();
    if list.end.is_none() {
        return (kind, first).into_response();
    }
    let first = stream::once(async { Ok::<_, Infallible>(Bytes::from(first)) });
    let others = stream::unfold(list, |mut list| async move {
        // A client that takes everything at once must not keep the worker to itself.
        tokio::task::yield_now().await;
        let piece = list.piece()?;
        Some((Ok(Bytes::from(piece)), list))
    });
    (kind, Body::from_stream(first.chain(others))).into_response()
}

impl<I: Iterator<Item: Serialize>> List<I> {
    fn new(key: &str, items: I, rest: &str) -> Self {
        let (text, end) = (format!("{{\"{key}\":["), Some(format!("]{rest}}}")));
        Self { items: items.peekable(), text, end }
    }

    fn piece(&mut self) -> Option<String> {
        let end = self.end.take()?;
        let mut text = mem::take(&mut self.text);
        while let Some(item) = self.items.next() {
            text.push_str(&wire::json(&item));
            if self.items.peek().is_some() {
                text.push(',');
            }
            if text.len() >= PIECE_BYTES {
                self.end = Some(end);
                return Some(text);
            }
        }
        Some(text + &end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn pieces_together_are_the_list() {
        for count in [0_usize, 1, 2, 40_000] {
            let items = (0..count).map(|index| json!({"index": index, "text": "a \"b\""}));
            let all: Vec<Value> = items.clone().collect();
            let mut list = List::new("items", items, r#","more":1"#);
            let pieces: Vec<String> = std::iter::from_fn(|| list.piece()).collect();
            assert!(pieces.iter().all(|piece| piece.len() < 2 * PIECE_BYTES));
            assert_eq!(pieces.len() > 1, count > 2, "{count}");
            let whole: Value = serde_json::from_str(&pieces.concat()).unwrap();
            assert_eq!(whole, json!({"items": all, "more": 1}));
        }
    }
}
