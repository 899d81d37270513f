//! Text that others wrote (targets, container runtimes, the API server), made
//! fit for labels: bounded, and without characters that could break a line, a
//! page or a terminal.

/// The longest value of a label, in bytes.
pub const MAX_VALUE_BYTES: usize = 1024;

/// `text` with control characters and invalid UTF-8 replaced by U+FFFD, without
/// space around it, cut to [`MAX_VALUE_BYTES`].
pub fn clean(text: impl AsRef<[u8]>) -> String {
    let bytes = text.as_ref();
    // Replacing makes a byte three, never less than it was: this much is enough.
    let bytes = &bytes[..bytes.len().min(4 * MAX_VALUE_BYTES)];
    let text = String::from_utf8_lossy(bytes);
    let mut clean = String::with_capacity(text.len().min(MAX_VALUE_BYTES));
    for char in text.trim().chars() {
        let char = if breaks(char) { '\u{fffd}' } else { char };
        if clean.len() + char.len_utf8() > MAX_VALUE_BYTES {
            break;
        }
        clean.push(char);
    }
    clean
}

/// As [`clean`]; `None` where nothing is left.
pub fn clean_some(text: impl AsRef<[u8]>) -> Option<String> {
    Some(clean(text)).filter(|text| !text.is_empty())
}

/// Control characters, and those that end a line or turn the direction of what
/// follows them (Unicode's `Bidi_Control`).
fn breaks(char: char) -> bool {
    char.is_control()
        || matches!(
            char,
            '\u{2028}' | '\u{2029}' | '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{feff}'
        )
        || ('\u{202a}'..='\u{202e}').contains(&char)
        || ('\u{2066}'..='\u{2069}').contains(&char)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_break_a_line_is_replaced() {
        assert_eq!(clean("shop"), "shop");
        assert_eq!(clean(" größe \n"), "größe");
        assert_eq!(clean("a\nb\x1b[31m\0"), "a\u{fffd}b\u{fffd}[31m\u{fffd}");
        assert_eq!(clean(b"a\xff\xc3"), "a\u{fffd}\u{fffd}");
        assert_eq!(
            clean("a\u{202e}b\u{2028}c\u{85}d"),
            "a\u{fffd}b\u{fffd}c\u{fffd}d"
        );
        assert_eq!(clean_some("\t \n"), None);
    }

    #[test]
    fn values_are_bounded() {
        assert_eq!(clean("x".repeat(5000)).len(), MAX_VALUE_BYTES);
        let wide = clean("ä\u{1F600}".repeat(5000));
        assert!(wide.len() <= MAX_VALUE_BYTES && wide.len() > MAX_VALUE_BYTES - 4);
        let invalid = clean(vec![0xff; 1 << 20]);
        assert!(invalid.len() <= MAX_VALUE_BYTES);
        // A character that the bound cuts in two is not kept.
        assert!(clean("ä".repeat(4096)).chars().all(|c| c == 'ä'));
    }
}
