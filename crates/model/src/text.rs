//! Texts for people: bounded, and with nothing in them that a terminal obeys. What they quote was
//! written by tenants and by whoever names files.

use std::borrow::Cow;

/// Where something was cut off.
const CUT: char = '…';

/// Whether a terminal does something else with it than to show it, or shows what follows in another
/// order: C0, DEL and C1; line and paragraph separators; the marks of bidirectional text.
fn is_hidden(found: char) -> bool {
    found.is_control()
        || matches!(found,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// `text` with everything escaped that a terminal would not simply show.
pub fn escaped(text: &str) -> Cow<'_, str> {
    escape(text, is_hidden)
}

/// The same, of a text in lines and columns.
pub fn escaped_lines(text: &str) -> Cow<'_, str> {
    escape(text, |found| is_hidden(found) && !matches!(found, '\n' | '\t'))
}

/// A JSON text with the same in its strings escaped as JSON does it, so that it says what it said.
pub fn escaped_json(json: &str) -> Cow<'_, str> {
    let hidden = |found| is_hidden(found) && found != '\n';
    if !json.contains(hidden) {
        return Cow::Borrowed(json);
    }
    let mut out = String::with_capacity(json.len() + 16);
    for found in json.chars() {
        if hidden(found) {
            // None of them is beyond the sixteen bits that this notation has.
            out.push_str(&format!("\\u{:04x}", u32::from(found)));
        } else {
            out.push(found);
        }
    }
    Cow::Owned(out)
}

fn escape(text: &str, hidden: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&hidden) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for found in text.chars() {
        if hidden(found) { out.extend(found.escape_default()) } else { out.push(found) }
    }
    Cow::Owned(out)
}

/// `text` escaped, and cut off with `…` where it would be longer than `max` bytes.
pub fn bounded(text: impl Into<String>, max: usize) -> String {
    let mut text = text.into();
    // Escapes only make it longer, and a cut end needs none.
    let longer = text.len() > max;
    if longer {
        text.truncate(text.floor_char_boundary(max));
    }
    let escaped = match escaped(&text) {
        Cow::Borrowed(_) => None,
        Cow::Owned(escaped) => Some(escaped),
    };
    let mut text = escaped.unwrap_or(text);
    if longer || text.len() > max {
        text.truncate(text.floor_char_boundary(max.saturating_sub(CUT.len_utf8())));
        text.push(CUT);
        // What was large is not kept for the sake of its beginning.
        text.shrink_to_fit();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_obeys_is_escaped_and_letters_are_not() {
        assert_eq!(escaped("a\u{1b}[2J\r\n"), r"a\u{1b}[2J\r\n");
        assert_eq!(escaped("\u{9b}31m\u{7f}"), r"\u{9b}31m\u{7f}");
        assert_eq!(escaped("exe\u{202e}txt.sh"), r"exe\u{202e}txt.sh");
        assert_eq!(escaped("naïve/日本語 \"x\" \\n"), "naïve/日本語 \"x\" \\n");
        assert_eq!(escaped_lines("a\tb\nc\u{1b}"), "a\tb\nc\\u{1b}");
    }

    #[test]
    fn json_says_what_it_said() {
        let value = serde_json::json!({"a\u{9b}": "x\u{1b}\u{202e}\u{7f}\n", "b": ["é"]});
        let text = serde_json::to_string_pretty(&value).unwrap();
        let shown = escaped_json(&text);
        assert_eq!(escaped_lines(&shown), shown);
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
    }

    #[test]
    fn what_is_too_long_is_cut_between_characters() {
        assert_eq!(bounded("abcdef", 6), "abcdef");
        assert_eq!(bounded("abcdefg", 6), "abc…");
        assert_eq!(bounded("ééééé", 8), "éé…");
        assert_eq!(bounded("\u{1b}\u{1b}\u{1b}", 10), r"\u{1b}\…");
        for max in 3..40 {
            assert!(bounded("é\u{1b}x".repeat(20), max).len() <= max, "{max}");
        }
    }
}
