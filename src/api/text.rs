//! Bytes of a console as text: a character that was cut in two arrives whole, and what is no text is
//! marked as such.

use std::collections::HashMap;

use sodium_shim::spool::Stream;

/// Longest tail that may be the beginning of a character.
const TAIL_BYTES_MAX: usize = 3;

/// Remembers the beginnings of characters, for each stream its own.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    tails: HashMap<Stream, Vec<u8>>,
}

impl Decoder {
    /// Appends what the bytes say; what they only begin to say is kept for later.
    pub(super) fn decode(&mut self, stream: Stream, bytes: &[u8], out: &mut String) {
        let tail = self.tails.entry(stream).or_default();
        if tail.is_empty() {
            let whole = whole(bytes);
            push(out, &bytes[..whole]);
            tail.extend_from_slice(&bytes[whole..]);
            return;
        }
        // Few bytes at a time, until the character in the tail is over.
        let mut joined = std::mem::take(tail);
        joined.extend_from_slice(bytes);
        let whole = whole(&joined);
        push(out, &joined[..whole]);
        tail.extend_from_slice(&joined[whole..]);
    }

    /// What was begun and never ended.
    pub(super) fn finish(&mut self, out: &mut String) {
        for (_, tail) in self.tails.drain() {
            push(out, &tail);
        }
    }
}

fn push(out: &mut String, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => out.push_str(text),
        Err(_) => out.push_str(&String::from_utf8_lossy(bytes)),
    }
}

/// How many of the bytes do not belong to a character that goes on after them.
fn whole(bytes: &[u8]) -> usize {
    let from = bytes.len().saturating_sub(TAIL_BYTES_MAX);
    for at in (from..bytes.len()).rev() {
        let width = match bytes[at] {
            0xC2..=0xDF => 2,
            0xE0..=0xEF => 3,
            0xF0..=0xF4 => 4,
            0x80..=0xBF => continue,
            _ => 1,
        };
        return if at + width > bytes.len() { at } else { bytes.len() };
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_arrive_whole_however_they_are_cut() {
        let text = "a é € 🦀 z";
        for cut in 1..=4 {
            let (mut decoder, mut out) = (Decoder::default(), String::new());
            for piece in text.as_bytes().chunks(cut) {
                decoder.decode(Stream::Stdout, piece, &mut out);
            }
            decoder.finish(&mut out);
            assert_eq!(out, text, "cut into {cut}");
        }
    }

    #[test]
    fn streams_do_not_cut_into_each_others_characters() {
        let (mut decoder, mut out) = (Decoder::default(), String::new());
        decoder.decode(Stream::Stdout, &[0xC3], &mut out);
        decoder.decode(Stream::Stderr, b"!", &mut out);
        decoder.decode(Stream::Stdout, &[0xA9], &mut out);
        assert_eq!(out, "!é");
    }

    #[test]
    fn what_is_no_text_is_marked_and_holds_nothing_up() {
        let (mut decoder, mut out) = (Decoder::default(), String::new());
        decoder.decode(Stream::Stdout, b"a\xFFb\xC3", &mut out);
        decoder.decode(Stream::Stdout, b"c", &mut out);
        assert_eq!(out, "a\u{FFFD}b\u{FFFD}c");
    }
}
